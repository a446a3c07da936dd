"""The published code's layout: what it computes, ours computes; there and back changes nothing; misfits are named."""

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionModel, LlamaForCausalLM

from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.published import from_published, to_published
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


@pytest.mark.parametrize("projector", ["linear_norm", "vit"])
def test_there_and_back(make_model, backbones, processor, tmp_path, projector):
    model = make_model(projector_type=projector, vision_feature_select_strategy="full", image_seq_length=5)
    model.save_pretrained(tmp_path / "a", max_shard_size="40KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    to_published(tmp_path / "a", tmp_path / "pytorch_model.bin")
    size = sum(file.stat().st_size for file in (tmp_path / "a").glob("*.safetensors"))
    embedding = model.get_input_embeddings().weight.nbytes
    assert (tmp_path / "pytorch_model.bin").stat().st_size < size + embedding + 40_000  # names; no storage saved twice
    from_published(tmp_path, tmp_path / "b", backbones.vision, backbones.language, image_seq_length=5)
    again = load(tmp_path / "b")
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    dialogue = Dialogue((Turn.ask("Which?", [], "none"),))
    batch = processor.batch([dialogue])
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert "/tmp" not in (tmp_path / "b" / "config.json").read_text()


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
        ({"projection.query": torch.ones(1)}, "projection.0.weight", "its `perceiver` is built otherwise"),
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
