"""The model: image k lands at slot k, counts are checked, and what it computes does not depend on how it is batched."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Cohere2Config,
    Dinov2Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    SiglipVisionConfig,
    pipeline,
)
from transformers import AutoModelForCausalLM as CausalLM

from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.encoding import IGNORE_INDEX
from visualchat.model import (
    VisualChatConfig,
    VisualChatForConditionalGeneration,
    VisualChatModel,
    VisualChatProcessor,
)
from visualchat.model.loss import answer_loss, answer_losses, answer_rows, language_head

COLOURS = ("red", "green", "blue", "white")


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (20, 20), COLOURS[number])


def dialogues() -> list[Dialogue]:
    """Images in the first and a later round, two in one round, and none at all."""
    return [
        Dialogue((Turn.ask("One?", [picture(0)], "yes"), Turn.ask("Two?", [picture(1), picture(2)], "no"))),
        Dialogue((Turn.ask("No image?", [], "none"), Turn.ask("Still none?", [], "none at all"))),
        Dialogue((Turn.ask("Before.", [], "ok"), Turn.ask("After?", [picture(3)], "fine"))),
    ]


def test_image_k_lands_at_slot_k(model, processor):
    batch = processor.batch(dialogues())
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    embeds = model.get_input_embeddings()(batch["input_ids"])
    spliced = model.splice(embeds, batch["mm_token_type_ids"], features)
    assert len(features) == 4
    for row, expected in ((0, features[:3]), (2, features[3:])):
        slots = batch["mm_token_type_ids"][row] == 1
        assert torch.equal(spliced[row][slots], expected.flatten(0, 1))
        assert torch.equal(spliced[row][~slots], embeds[row][~slots])
    assert torch.equal(spliced[1], embeds[1])


def test_swapped_images_change_the_answer_rows(model, processor):
    first, second = (
        processor.batch([Dialogue((Turn.ask("Which?", [picture(a), picture(b)], "that"),))])
        for a, b in ((0, 1), (1, 0))
    )
    assert (model(**first).logits - model(**second).logits).abs().max() > 1e-3


def test_mismatch_of_slots_and_images_raises(model, processor):
    batch = processor.batch(dialogues())
    fewer = {**batch, "pixel_values": batch["pixel_values"][:3]}
    with pytest.raises(ValueError, match="marks 16 image tokens, 3 images bring 12"):
        model(**fewer)
    del fewer["pixel_values"]
    with pytest.raises(ValueError, match="16 image tokens but no pixel_values"):
        model(**fewer)
    larger = {**batch, "pixel_values": torch.zeros(4, 3, 24, 24)}
    with pytest.raises(ValueError, match="Input image size"):
        model(**larger)


def test_encoder_of_another_token_count_raises(make_model, processor):
    model = make_model(vision_feature_select_strategy="full")
    with pytest.raises(ValueError, match=r"gives 5 tokens for images of \(16, 16\) pixels, .* is 4"):
        model(**processor.batch(dialogues()))


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_a_mixed_batch_equals_its_dialogues_alone(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    alone = torch.cat([model(**processor.batch([dialogue])).logits for dialogue in dialogues()])
    together = model(**processor.batch(dialogues())).logits
    left = model(**processor.batch(dialogues(), padding_side="left"), **left_positions(processor)).logits
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, alone, atol=1e-4, rtol=1e-4)


def left_positions(processor):
    mask = processor.batch(dialogues(), padding_side="left")["attention_mask"]
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_a_later_turn_changes_no_earlier_logits(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    long = Dialogue((*dialogues()[0].turns, Turn.ask("More?", [picture(3)], "much more")))
    short = processor.batch([dialogues()[0]])
    labels = short.pop("labels")
    full = processor.batch([long])
    del full["labels"]
    before, after = model(**short).logits, model(**full).logits[:, : labels.shape[1]]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_over_answer_tokens_of_plain_cross_entropy(model, processor):
    batch = processor.batch(dialogues())
    labels = batch.pop("labels")
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )
    torch.testing.assert_close(model(**batch, labels=labels).loss, expected)


def test_nothing_to_learn_gives_zero_not_nan():
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    rows, targets = answer_rows(hidden, torch.full((2, 5), IGNORE_INDEX))
    loss = answer_loss(answer_losses(rows @ torch.randn(8, 11), targets))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(),
        Gemma2Config(final_logit_softcapping=3.0),
        Cohere2Config(logit_scale=0.25),
        GraniteConfig(logits_scaling=4.0),
    ],
    ids=lambda config: config.model_type,
)
def test_language_head_equals_each_familys_own(config):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    for name, value in {**sizes, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, "pad_token_id": 0}.items():
        setattr(config, name, value)
    config.layer_types = None if not hasattr(config, "layer_types") else ["full_attention"]
    language_model = CausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.arange(7)[None]
    hidden = language_model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(language_head(language_model, hidden), language_model(input_ids=ids).logits)


@pytest.mark.parametrize(
    "vision",
    [
        SiglipVisionConfig(image_size=16, patch_size=8, vision_use_head=False),
        Dinov2Config(image_size=16, patch_size=8),
    ],
    ids=lambda config: config.model_type,
)
def test_other_encoders_of_transformers_serve(vision, processor):
    for name, value in {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}.items():
        setattr(vision, name, value)
    vision.num_attention_heads = 2
    text = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    select = "full" if vision.model_type == "siglip_vision_model" else "default"
    config = VisualChatConfig(
        vision_config=vision, text_config=text, image_seq_length=4, vision_feature_select_strategy=select
    )
    loss = VisualChatForConditionalGeneration(config)(**processor.batch(dialogues())).loss
    assert loss.isfinite()


@pytest.mark.parametrize(("layer", "differs"), [(-1, False), (-2, True)])
def test_vision_feature_layer(make_model, processor, layer, differs):
    """CLIP's last hidden states are those of its last layer."""
    pixels = processor.batch(dialogues())["pixel_values"]
    last, chosen = (make_model(vision_feature_layer=choice).vision_features(pixels) for choice in (None, layer))
    assert torch.allclose(last, chosen) is not differs


def test_from_backbones_unties_the_head_and_keeps_the_weights(model, backbones):
    language = CausalLM.from_pretrained(backbones.language)
    assert language.get_input_embeddings().weight is language.get_output_embeddings().weight
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding is not head
    assert torch.equal(head, language.lm_head.weight)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.config.text_config is model.language_model.config
    assert model.language_model.config._attn_implementation == "mmca_sdpa"
    assert model.vision_tower.config._attn_implementation == "sdpa"


def test_a_norm_projector_starts_at_the_spread_of_words(make_model, processor):
    model = make_model(projector_type="linear_norm")
    images = model.get_image_features(processor.batch(dialogues())["pixel_values"]).pooler_output
    words = model.get_input_embeddings().weight
    # A layer norm's output has exactly the spread of its gain.
    torch.testing.assert_close(images.std(-1, unbiased=False).mean(), words.std(), rtol=0.02, atol=0)


def test_save_and_load(make_model, processor, tmp_path):
    model = make_model(projector_type="linear_norm", attention_kind="mmca", attention_implementation="eager")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, VisualChatForConditionalGeneration)
    assert loaded.language_model.config._attn_implementation == "mmca_eager"
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded_processor, VisualChatProcessor)
    expected, found = processor.batch(dialogues()), loaded_processor.batch(dialogues())
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(loaded(**found).logits, model(**expected).logits)


def test_unknown_names_in_the_config_are_refused():
    with pytest.raises(ValueError, match="unknown attention kind 'mcca', expected one of causal, mmca"):
        VisualChatConfig(attention_kind="mcca")
    with pytest.raises(ValueError, match="unknown projector 'lineal', expected one of linear, linear_norm"):
        VisualChatConfig(projector_type="lineal")
    with pytest.raises(ValueError, match="unknown implementation 'flash'"):
        VisualChatConfig(attention_implementation="flash")


def test_pipeline(model, processor):
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "What is it?"}]
    said = pipe(
        [{"role": "user", "content": content}],
        generate_kwargs={"max_new_tokens": 4, "do_sample": False},
        return_full_text=False,
    )
    prompt = processor(images=picture(0), text="What is it?")
    expected = model.generate(**prompt, max_new_tokens=4, do_sample=False)[:, prompt["input_ids"].shape[1] :]
    assert said[0]["generated_text"] == processor.decode(expected[0], skip_special_tokens=True)


def test_a_batched_pipeline_says_what_each_row_gets_alone(model, processor):
    def chat(question, *pictures):
        content = [*({"type": "image", "image": picture(n)} for n in pictures), {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    chats = [chat("What?", 0), chat("Which of these two pictures is blue?", 1, 2), chat("Red?", 0)]
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    settings = {"generate_kwargs": {"max_new_tokens": 6, "do_sample": False}, "return_full_text": False}
    alone = [pipe(one, **settings)[0]["generated_text"] for one in chats]
    together = [row[0]["generated_text"] for row in pipe(chats, batch_size=3, **settings)]
    assert together == alone


@pytest.mark.parametrize("kind", ["mmca", "causal", "cross"])
def test_attention_changes_within_its_kind_only(make_model, processor, kind):
    model = make_model(attention_kind=kind, cross_attention_every=1)
    if kind == "cross":
        processor = VisualChatProcessor(processor.image_processor, processor.tokenizer, 1)
    batch = processor.prompt(dialogues()[:1])
    expected = model(**batch).logits
    assert model.language_model.config._attn_implementation == ("mmca_sdpa" if kind == "mmca" else "causal_sdpa")
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.language_model.config._attn_implementation == (f"mmca_{name}" if kind == "mmca" else name)
        assert model.vision_tower.config._attn_implementation == name
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    model.set_attn_implementation({"text_config": "eager"})
    assert model.language_model.config._attn_implementation == ("mmca_eager" if kind == "mmca" else "eager")
    assert model.vision_tower.config._attn_implementation == "sdpa"
    for other in ("mmca_joint_sdpa", *(["flash_attention_2", "vllm"] if kind == "mmca" else [])):
        with pytest.raises(ValueError, match=f"'{other}' is not one of attention kind"):
            model.set_attn_implementation(other)
    model.language_model.config._attn_implementation = "sdpa" if kind == "mmca" else "mmca_sdpa"
    with pytest.raises(ValueError, match=r"the language model attends by '.*sdpa', config.attention_kind says"):
        model(**batch)


def test_a_folder_is_loaded_with_the_attention_asked_for(make_model, processor, tmp_path):
    make_model(attention_kind="mmca").save_pretrained(tmp_path)
    for asked, text in (("eager", "mmca_eager"), ({"text_config": "eager"}, "mmca_eager"), ("sdpa", "mmca_sdpa")):
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=asked)
        assert loaded.language_model.config._attn_implementation == text
        assert loaded(**processor.batch(dialogues())).loss.isfinite()
    for asked, found in (("vllm", "is not one of attention kind 'mmca'"), ("mmca_eager", "would switch the vision")):
        with pytest.raises(ValueError, match=found):
            AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=asked)


def test_the_base_model_is_the_same_model_up_to_its_head(make_model, processor, tmp_path):
    model, batch = make_model(), processor.batch(dialogues())
    labels = batch.pop("labels")
    bare = model.base_model
    assert type(bare) is VisualChatModel
    assert [name for name, _ in bare.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(bare.parameters(), model.parameters(), strict=True))
    model.forward = None  # what a trainer puts in its place is not the base model's
    found = model.base_model(**batch)
    del model.forward
    torch.testing.assert_close(language_head(model.language_model, found.last_hidden_state), model(**batch).logits)
    assert bare.train(False).training == model.training
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VisualChatModel
    assert torch.equal(loaded(**batch).last_hidden_state, found.last_hidden_state)
    assert type(AutoModelForMultimodalLM.from_pretrained(tmp_path)) is type(model)
    out = model(**batch, labels=labels, output_hidden_states=True, return_dict=False)
    assert isinstance(out, tuple)
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == model.language_model.config.num_hidden_layers + 1
    assert torch.equal(states[-1], found.last_hidden_state)


def test_attention_weights_are_given_where_they_exist(make_model, processor):
    batch = processor.prompt(dialogues()[:1])
    causal = make_model(attention_kind="causal", attention_implementation="eager")
    weights = causal(**batch, output_attentions=True).attentions
    torch.testing.assert_close(weights[0].sum(-1), torch.ones_like(weights[0].sum(-1)))
    with pytest.raises(ValueError, match="attention kind 'mmca' gives no attention weights"):
        make_model(attention_implementation="eager")(**batch, output_attentions=True)


def test_the_vocabulary_can_be_resized(make_model, processor, tmp_path):
    model, batch = make_model(), processor.batch(dialogues())
    before, size = model(**batch).logits, model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 7)
    assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == size + 7
    torch.testing.assert_close(model(**batch).logits[:, :size], before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.config.text_config.vocab_size == loaded.language_model.config.vocab_size == size + 7


def test_a_text_only_training_batch_touches_the_vision_side(model, processor):
    model.requires_grad_(True).train()
    model(**processor.batch([dialogues()[1]])).loss.backward()
    for part in (model.vision_tower.embeddings, model.multi_modal_projector):
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert all(not parameter.grad.any() for parameter in part.parameters())
