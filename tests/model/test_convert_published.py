"""The published code's layout: what it computes, ours computes; there and back changes nothing; misfits are named."""

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from visualchat.attention import multimodal_attention
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.convert_published import from_published, to_published
from visualchat.model.vision import QwenVLVisionConfig

SETTINGS = {"image_seq_length": 5, "attention_kind": "causal"}  # 4 patches and the class token, as published


@pytest.fixture
def parts(backbones):
    """What the published code puts together: encoder, projection, LLaMA with two more tokens, trained embedding."""
    torch.manual_seed(3)
    decoder = LlamaForCausalLM.from_pretrained(backbones.language)
    decoder.resize_token_embeddings(decoder.config.vocab_size + 2)
    decoder.lm_head.weight = nn.Parameter(decoder.lm_head.weight.detach().clone())
    embedding = nn.Embedding(decoder.config.vocab_size, decoder.config.hidden_size)
    projection = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32, eps=1e-12))
    return CLIPVisionModel.from_pretrained(backbones.vision), projection, decoder, embedding


def published(parts) -> dict[str, torch.Tensor]:
    """Their weights by the names that the published code saves."""
    encoder, projection, decoder, embedding = parts
    return {
        **{f"vis_encoder.vision_model.{name}": weight for name, weight in encoder.state_dict().items()},
        **{f"projection.{name}": weight for name, weight in projection.state_dict().items()},
        **{f"lang_decoder.{name}": weight for name, weight in decoder.state_dict().items()},
        "lang_embed.weight": embedding.weight.detach(),
        # buffers of older transformers, and adapters that were fused before saving
        "vis_encoder.vision_model.embeddings.position_ids": torch.arange(5)[None],
        "lang_decoder.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "lang_decoder.model.layers.0.self_attn.q_proj.lora_right_weight": torch.ones(32, 2),
        "lang_decoder.model.layers.0.self_attn.q_proj.lora_left_weight": torch.ones(2, 32),
    }


@pytest.fixture
def file(parts, tmp_path):
    torch.save(published(parts), tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin"


def load(folder):
    model, report = VisualChatForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model


def test_what_the_published_parts_compute(parts, file, backbones, processor, tmp_path):
    encoder, projection, decoder, embedding = parts
    from_published(file, tmp_path / "ours", backbones.vision, backbones.language, **SETTINGS)
    model = load(tmp_path / "ours")
    pixels = processor(images=Image.new("RGB", (16, 16), "red"), text="What?")["pixel_values"]
    tokens = torch.tensor([[1, 8, 9, 10, 11]])
    with torch.no_grad():
        image = projection(encoder(pixels).last_hidden_state)
        expected = decoder(inputs_embeds=torch.cat([image, embedding(tokens)], 1)).logits
        found = model(
            input_ids=torch.cat([torch.zeros(1, 5, dtype=torch.long), tokens], 1),
            mm_token_type_ids=torch.tensor([[1] * 5 + [0] * 5]),
            pixel_values=pixels,
        ).logits
    # the same float32 operations; attention may sum in another order
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_the_embedding_that_generates_is_the_trained_one(parts, file, backbones, tmp_path):
    from_published(tmp_path, tmp_path / "ours", backbones.vision, backbones.language, **SETTINGS)
    assert torch.equal(load(tmp_path / "ours").get_input_embeddings().weight, parts[3].weight)
    to_published(tmp_path / "ours", tmp_path / "back.bin")
    back = torch.load(tmp_path / "back.bin")
    assert torch.equal(back["lang_embed.weight"], parts[3].weight)
    assert torch.equal(back["lang_decoder.model.embed_tokens.weight"], parts[3].weight)
    assert set(published(parts)) - set(back) == {
        "vis_encoder.vision_model.embeddings.position_ids",
        "lang_decoder.model.layers.0.self_attn.rotary_emb.inv_freq",
        "lang_decoder.model.layers.0.self_attn.q_proj.lora_right_weight",
        "lang_decoder.model.layers.0.self_attn.q_proj.lora_left_weight",
    }
    assert set(back) < set(published(parts))


def clip(folder, **changes):
    """The folder of an encoder with heads of 64, as those that the published code was used with."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "num_hidden_layers": 2}
    torch.manual_seed(4)
    CLIPVisionModel(CLIPVisionConfig(**{**sizes, "image_size": 16, "patch_size": 8, **changes})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("projector", ["linear_norm", "vit"])
def test_there_and_back(backbones, processor, tmp_path, projector):
    vision = clip(tmp_path / "clip")
    model = VisualChatForConditionalGeneration.from_backbones(
        vision, backbones.language, projector_type=projector, image_seq_length=5
    )
    model.save_pretrained(tmp_path / "a", max_shard_size="40KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    to_published(tmp_path / "a", tmp_path / "pytorch_model.bin")
    size = sum(file.stat().st_size for file in (tmp_path / "a").glob("*.safetensors"))
    embedding = model.get_input_embeddings().weight.nbytes
    assert (tmp_path / "pytorch_model.bin").stat().st_size < size + embedding + 40_000  # names; no storage saved twice
    from_published(tmp_path, tmp_path / "b", vision, backbones.language, image_seq_length=5)
    again = load(tmp_path / "b")
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    dialogue = Dialogue((Turn.ask("Which?", [], "none"),))
    batch = processor.batch([dialogue])
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert "/tmp" not in (tmp_path / "b" / "config.json").read_text()


def vit_parts(parts, folder):
    """The published parts with the `vit` projector: an encoder layer as the encoder's own, then the baseline."""
    encoder = CLIPVisionModel.from_pretrained(folder)
    encoder.config._attn_implementation = "eager"
    layer = CLIPEncoderLayer(encoder.config)
    projection = nn.Sequential(nn.Linear(encoder.config.hidden_size, 32), nn.LayerNorm(32, eps=1e-12))
    weights = published((encoder, projection, *parts[2:]))
    weights = {name.replace("projection.", "projection.projection."): weight for name, weight in weights.items()}
    weights |= {f"projection.vis_layer.{name}": weight for name, weight in layer.state_dict().items()}
    return encoder, layer, projection, weights


def test_a_vit_projector_computes_what_the_published_one_does(parts, file, backbones, tmp_path):
    vision = clip(tmp_path / "clip")
    encoder, layer, projection, weights = vit_parts(parts, vision)
    torch.save(weights, file)
    from_published(file, tmp_path / "ours", vision, backbones.language, **SETTINGS)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = projection(layer(encoder(pixels).last_hidden_state, None))
        found = load(tmp_path / "ours").get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # two forms of attention, float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads, 2 in clip_vision_model, ours has 1 at width 64"),
        ({"hidden_act": "gelu"}, "hidden_act, 'gelu' in clip_vision_model, ours has 'quick_gelu'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps, 1e-06 in clip_vision_model, ours has 1e-05"),
    ],
)
def test_a_vit_projector_that_would_compute_something_else_is_refused(
    parts, file, backbones, tmp_path, changes, message
):
    vision = clip(tmp_path / "clip", **changes)
    torch.save(vit_parts(parts, vision)[-1], file)
    with pytest.raises(ValueError, match=message):
        from_published(file, tmp_path / "ours", vision, backbones.language, **SETTINGS)
    assert not (tmp_path / "ours").exists()
    model = VisualChatForConditionalGeneration.from_backbones(
        vision, backbones.language, projector_type="vit", image_seq_length=5
    )
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        to_published(tmp_path / "a", tmp_path / "back.bin")


class PublishedAttention:
    """What the published code computes, its additive masks of the smallest number written out; (B, H, S, D) float64.

    Of the text side and of the image side each query sees what stands before it; an image token of the image side
    itself. A mask is added for the later tokens and one for the other side's: both together leave minus infinity, one
    alone the smallest number. A row that sees no image is thus even over earlier text and later images.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image  # (S,)

    def __call__(self, query, key, value):
        smallest = torch.finfo(query.dtype).min
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        itself = ~torch.eye(len(later), dtype=torch.bool)
        of_images = ~self.image[None].expand_as(later) | (self.image[:, None] & itself)
        of_text = self.image[None].expand_as(later)
        sides = [scores + later.double() * smallest + hidden.double() * smallest for hidden in (of_text, of_images)]
        return sum(side.softmax(-1) @ value for side in sides)


def test_what_the_published_attention_adds_where_no_image_is_seen():
    """`mmca_reference` is the published attention but for an even mean in text that stands before every image."""
    modality = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]])
    image = modality[0] == 1
    query, key, value = (torch.randn(1, 2, 11, 8).double() for _ in range(3))
    kind = {"kind": "mmca_reference", "query_modality": modality, "key_modality": modality}
    expected = multimodal_attention(query, key, value, **kind)
    for row in range(3):
        place = torch.arange(11)
        even = (~image & (place <= row)) | (image & (place > row))
        expected[:, :, row] += value[:, :, even].mean(2)
    found = PublishedAttention(image)(query, key, value)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    text = torch.zeros_like(modality)
    alone = multimodal_attention(query, key, value, kind="causal", query_modality=text, key_modality=text)
    doubled = PublishedAttention(text[0] == 1)(query, key, value)  # without images it adds the mean of what is before
    means = value.cumsum(2) / torch.arange(1, 12)[:, None]
    torch.testing.assert_close(doubled, alone + means, atol=1e-10, rtol=1e-10)


def test_the_published_code_shows_images_in_reverse(parts, file, backbones, processor, tmp_path):
    """Two images: what it computes is what ours computes of the same images the other way round."""
    encoder, projection, decoder, embedding = parts
    from_published(file, tmp_path / "ours", backbones.vision, backbones.language, **SETTINGS)
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    pixels = processor.image_processor(images=[red, blue], return_tensors="pt")["pixel_values"]
    tokens = torch.tensor([[1, 8, 9]])
    with torch.no_grad():
        images = [projection(encoder(picture[None]).last_hidden_state) for picture in pixels]
        words = embedding(tokens)
        theirs = decoder(inputs_embeds=torch.cat([words, images[1], words, images[0], words], 1)).logits
        model = load(tmp_path / "ours")
        gap = torch.zeros(1, 5, dtype=torch.long)
        given = {
            "input_ids": torch.cat([tokens, gap, tokens, gap, tokens], 1),
            "mm_token_type_ids": torch.tensor([[0] * 3 + [1] * 5 + [0] * 3 + [1] * 5 + [0] * 3]),
        }
        assert not torch.allclose(model(**given, pixel_values=pixels).logits, theirs, atol=1e-2)
        torch.testing.assert_close(model(**given, pixel_values=pixels.flip(0)).logits, theirs, rtol=0, atol=1e-5)


def test_half_precision_stays(parts, file, backbones, tmp_path):
    torch.save({name: weight.half() for name, weight in published(parts).items()}, file)
    from_published(file, tmp_path / "ours", backbones.vision, backbones.language, **SETTINGS)
    assert {weight.dtype for weight in load(tmp_path / "ours").state_dict().values()} == {torch.float16}


def test_the_encoder_of_qwen_vl(backbones, tmp_path):
    encoder = QwenVLVisionConfig(
        image_size=28,
        width=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        position_grid=4,
        query_grid=2,
        hidden_size=64,
        num_resampler_heads=2,
    )
    encoder.save_pretrained(tmp_path / "qwen")
    decoder = LlamaForCausalLM.from_pretrained(backbones.language).config
    decoder.tie_word_embeddings = False
    config = VisualChatConfig(
        vision_config=encoder, text_config=decoder, projector_type="linear_norm", image_seq_length=4
    )
    model = VisualChatForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "a")
    to_published(tmp_path / "a", tmp_path / "pytorch_model.bin")
    assert "vis_encoder.attn_pool.kv_proj.weight" in torch.load(tmp_path / "pytorch_model.bin")
    from_published(tmp_path, tmp_path / "b", tmp_path / "qwen", backbones.language, image_seq_length=4)
    expected, found = model.state_dict(), load(tmp_path / "b").state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_misfits_are_named(parts, file, backbones, tmp_path):
    def read():
        from_published(file, tmp_path / "ours", backbones.vision, backbones.language, **SETTINGS)

    weights = published(parts)
    weights["lang_decoder.model.norms.weight"] = weights.pop("lang_decoder.model.norm.weight")
    weights["projection.1.bias"] = torch.zeros(31)
    torch.save(weights, file)
    message = (
        r"missing are language_model.model.norm.weight; unexpected are language_model.model.norms.weight; "
        r"multi_modal_projector.1.bias is \(31,\), expected \(32,\)"
    )
    with pytest.raises(ValueError, match=message):
        read()
    for surplus, lost, message in (
        ({"projection.query": torch.ones(1)}, "projection.0.weight", "its `perceiver` differs from ours"),
        ({}, "embed", "holds neither lang_embed.weight nor"),
    ):
        torch.save({n: w for n, w in (published(parts) | surplus).items() if lost not in n}, file)
        with pytest.raises(ValueError, match=message):
            read()
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as weights"):
        read()
    file.unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        read()
    assert not (tmp_path / "ours").exists()


def test_what_the_published_code_does_not_know_is_refused(make_model, tmp_path):
    make_model(projector_type="linear").save_pretrained(tmp_path / "ours")
    message = r"projectors linear_norm, vit and llama; found clip_vision_model, linear and llama"
    with pytest.raises(ValueError, match=message):
        to_published(tmp_path / "ours", tmp_path / "pytorch_model.bin")
    make_model(projector_type="linear_norm").config.save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no model\*.safetensors there"):
        to_published(tmp_path / "empty", tmp_path / "pytorch_model.bin")
