"""A model that starts from a saved folder is the saved one; a folder that does not fit is refused with its reason."""

from functools import partial

import pytest
import torch

from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.light import load_light, save_light
from visualchat.model.trainable import Trainable, set_trainable
from visualchat.model.warm_start import start_from, whole_base
from visualchat.tiny import backbone

ADAPTERS = Trainable(language="lora", lora_rank=2, lora_alpha=2.0)


@pytest.fixture
def build(backbones, tokenizer):
    return partial(
        VisualChatForConditionalGeneration.from_backbones,
        vision=backbones.vision,
        language=backbones.language,
        dtype=torch.float32,
        vocab_size=len(tokenizer),
        image_seq_length=4,
        vision_feature_layer=None,
        vision_feature_select_strategy="default",
        projector_type="linear",
        language_bits=None,
        attention_kind="mmca",
        attention_implementation="auto",
    )


def trained(build, trainable):
    """A model whose trained parts have moved."""
    model = build()
    set_trainable(model, trainable)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(model, folder, backbones, trainable, whole, processor):
    if whole:
        model.save_pretrained(folder)
    else:
        save_light(model, folder, backbones.vision, backbones.language, trainable)
    processor.save_pretrained(folder)


def assembled(build, fill, trainable):
    model = build()
    set_trainable(model, trainable)
    if fill is not None:
        fill(model)
    return model.eval()


def logits(model):
    torch.manual_seed(3)
    ids = torch.randint(3, 250, (1, 12))
    kinds = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        return model(input_ids=ids, mm_token_type_ids=kinds, pixel_values=torch.randn(1, 3, 16, 16)).logits


@pytest.mark.parametrize(
    ("before", "whole", "now"),
    [
        (Trainable(), True, Trainable()),
        (Trainable(), True, ADAPTERS),
        (Trainable(), False, Trainable()),
        (Trainable(), False, ADAPTERS),
        (ADAPTERS, False, ADAPTERS),
        (Trainable(embedding=False), False, Trainable(vision="full", language="full")),
    ],
)
def test_a_run_starts_where_the_folder_ended(build, backbones, processor, tmp_path, before, whole, now):
    first = trained(build, before)
    save(first, tmp_path / "first", backbones, before, whole, processor)
    start, fill = start_from(tmp_path / "first", build, now)
    second = assembled(start, fill, now)
    torch.testing.assert_close(logits(second), logits(first), rtol=0, atol=0)
    assert not torch.equal(logits(second), logits(assembled(build, None, now)))

    for parameter in second.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    save_light(second, tmp_path / "second", backbones.vision, backbones.language, now, whole=whole_base(start))
    torch.testing.assert_close(logits(load_light(tmp_path / "second")), logits(second), rtol=0, atol=0)
    third = assembled(*start_from(tmp_path / "second", build, now), now)
    torch.testing.assert_close(logits(third), logits(second), rtol=0, atol=0)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"attention_kind": "causal"},
            r"attention_kind='mmca' .* image_numbers='none' .*, configured is attention_kind='causal' ",
        ),
        ({"projector_type": "mlp"}, r"projector_type='linear', configured is 'mlp' \(model/projector=\.\.\.\)"),
        (
            {"image_numbers": "learned"},
            r"image_numbers='none' .*, configured is attention_kind='mmca' .* image_numbers='learned' ",
        ),
        ({"image_positions": "shared"}, r"positions='running', configured is .* image_positions='shared'$"),
        (
            {"early_attention_kind": "image"},
            r"early_attention_kind=None .*, configured is .*_kind='image' .*share=0\.25",
        ),
        ({"image_seq_length": 9}, r"image_seq_length=4, configured is 9 \(model/vision=\.\.\.\)"),
        ({"vocab_size": 999}, r"another tokenizer|too few for the tokenizer"),
    ],
)
def test_what_does_not_fit_is_named(build, backbones, processor, tmp_path, whole, changed, message):
    save(trained(build, Trainable()), tmp_path, backbones, Trainable(), whole, processor)
    with pytest.raises(ValueError, match=message):
        start_from(tmp_path, partial(build, **changed), Trainable())


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_numbers": "none"}, r"image_numbers='learned' .*, configured is .* image_numbers='none'"),
        ({"image_number_limit": 8}, r"image_number_limit=64, configured is 8 \(attention\.image_number_limit="),
    ],
)
def test_numbers_of_images_are_not_lost_on_the_way(build, backbones, processor, tmp_path, whole, changed, message):
    numbered = partial(build, image_numbers="learned")
    save(trained(numbered, Trainable()), tmp_path, backbones, Trainable(), whole, processor)
    with pytest.raises(ValueError, match=message):
        start_from(tmp_path, partial(numbered, **changed), Trainable())


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (Trainable(), Trainable(embedding=False), r"trained embedding=True, configured is False"),
        (ADAPTERS, Trainable(), r"trained language=lora, configured is frozen"),
        (ADAPTERS, Trainable(language="lora", lora_rank=2, lora_alpha=4.0), r"lora_alpha=2, configured is 4 "),
    ],
)
def test_a_light_folder_needs_its_trained_parts(build, backbones, processor, tmp_path, before, now, message):
    save(trained(build, before), tmp_path, backbones, before, False, processor)
    with pytest.raises(ValueError, match=message):
        start_from(tmp_path, build, now)


def test_a_light_folder_of_another_base_is_refused(build, backbones, processor, tmp_path):
    model = trained(build, Trainable())
    model.language_model.model.layers[0].mlp.up_proj.weight.data += 1.0
    save(model, tmp_path, backbones, Trainable(), False, processor)
    start, fill = start_from(tmp_path, build, Trainable())
    with pytest.raises(ValueError, match=r"belongs to another base: it was trained on vision"):
        assembled(start, fill, Trainable())


def test_another_precision_is_recognised_by_the_names_of_the_backbones(build, backbones, processor, tmp_path):
    save(trained(build, Trainable()), tmp_path / "light", backbones, Trainable(), False, processor)
    half = partial(build, dtype=torch.bfloat16)
    found = assembled(*start_from(tmp_path / "light", half, Trainable()), Trainable())
    expected = load_light(tmp_path / "light").multi_modal_projector.state_dict()
    for name, value in found.multi_modal_projector.state_dict().items():
        torch.testing.assert_close(value, expected[name].bfloat16())
    moved = partial(half, language=str(tmp_path / "moved"))
    build().language_model.save_pretrained(tmp_path / "moved")
    start, fill = start_from(tmp_path / "light", moved, Trainable())
    with pytest.raises(ValueError, match=r"belongs to another base"):
        assembled(start, fill, Trainable())


def test_a_base_in_4_bits_takes_what_trained_over_a_whole_one(build, tmp_path):
    tiny = {"vision": backbone("vision"), "language": backbone("language_mixed"), "image_seq_length": 16}
    build = partial(build, **tiny, vocab_size=0, vision_feature_select_strategy="full")
    first = trained(build, Trainable())
    save_light(first, tmp_path, tiny["vision"], tiny["language"], Trainable())
    start, fill = start_from(tmp_path, partial(build, language_bits=4), ADAPTERS)
    second = assembled(start, fill, ADAPTERS)
    assert second.language_model.is_quantized
    for name, value in first.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(second.get_parameter(name), value, rtol=0, atol=0)


def test_a_whole_model_is_not_quantized_and_another_backbone_is_named(build, backbones, processor, tmp_path):
    save(trained(build, Trainable()), tmp_path, backbones, Trainable(), True, processor)
    with pytest.raises(ValueError, match=r"not quantized while it loads: .* start from the light folder"):
        start_from(tmp_path, partial(build, language_bits=4), ADAPTERS)
    with pytest.raises(ValueError, match=r"llama, 2 layers, 32 wide, .*configured is llama, .* \(model/language="):
        start_from(tmp_path, partial(build, language=backbone("language_mixed")), Trainable())
    with pytest.raises(ValueError, match=r"init=nowhere: no saved model there"):
        start_from("nowhere", build, Trainable())
