"""Generation: the same tokens cached, uncached, one by one and in a left-padded batch."""

from itertools import pairwise

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from visualchat.dialogue import Dialogue, Turn


def prompts() -> list[Dialogue]:
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    return [
        Dialogue((Turn.ask("Which of them?", [red, blue]),)),
        Dialogue((Turn.ask("Hello there, this one is longer.", [], "Hi."), Turn.ask("And this?", [blue]))),
        Dialogue((Turn.ask("Text?"),)),
    ]


def generate(model, features, **settings) -> torch.Tensor:
    settings = {"max_new_tokens": 12, "do_sample": False, **settings}
    return model.generate(**features, **settings)[:, features["input_ids"].shape[1] :]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_cached_uncached_alone_and_batched_agree(make_model, processor, kind, implementation):
    model = make_model(attention_kind=kind, attention_implementation=implementation)
    batch = processor.prompt(prompts())
    cached = generate(model, batch)
    assert torch.equal(cached, generate(model, batch, use_cache=False))
    for row, dialogue in enumerate(prompts()):
        alone = generate(model, processor.prompt([dialogue]))[0]
        assert torch.equal(alone, cached[row][: len(alone)])
    assert len({tuple(row.tolist()) for row in cached}) == 3


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_cached_logits_equal_uncached_ones_step_by_step(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    features = processor.prompt([prompts()[0]])
    steps = {}
    for use_cache in (True, False):
        out = model.generate(
            **features,
            max_new_tokens=8,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps[use_cache] = torch.stack(out.logits)
    torch.testing.assert_close(steps[True], steps[False], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_chunked_prefill_equals_one_pass(make_model, processor, kind):
    """Chunks end between and inside images; each brings the images whose slots it holds."""
    model = make_model(attention_kind=kind)
    features = processor.prompt([prompts()[0]])
    ids, modality = features["input_ids"], features["mm_token_type_ids"]
    starts = modality[0].diff(prepend=torch.zeros(1, dtype=torch.long)).eq(1).nonzero().flatten().tolist()
    expected = model(**features).logits
    cache, logits, pixels = DynamicCache(), [], iter(features["pixel_values"])
    bounds = [0, 5, starts[0], starts[1] - 1, starts[1] + 4, ids.shape[1]]
    for start, stop in pairwise(bounds):
        images = [next(pixels) for s in starts if start <= s < stop]
        out = model(
            input_ids=ids[:, start:stop],
            mm_token_type_ids=modality[:, start:stop],
            key_modality=modality[:, :stop],
            pixel_values=torch.stack(images) if images else None,
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-4, rtol=1e-4)


def test_a_foreign_cache_without_the_modality_of_its_tokens_is_refused(model, processor):
    features = processor.prompt([prompts()[0]])
    modality = features["mm_token_type_ids"]
    ids = torch.cat([features["input_ids"], torch.tensor([[5, 6]])], 1)
    cache = model.language_model(features["input_ids"], key_modality=modality, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="key_modality"):
        model(input_ids=ids[:, -2:], past_key_values=cache)
    with pytest.raises(ValueError, match="pass generate the mm_token_type_ids of the whole conversation"):
        model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=2)


THREE = Dialogue((Turn.ask("Three?", [Image.new("RGB", (20, 20), colour) for colour in ("lime", "red", "white")]),))
MIXED = [*prompts()[:2], THREE, prompts()[2]]
"""Rows of two, one, three and no images, of unequal length."""

STRATEGIES = {
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 4, "num_return_sequences": 3},
    "static cache": {"cache_implementation": "static"},
    "guidance": {"guidance_scale": 1.5},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        *(("mmca", name) for name in STRATEGIES),
        ("causal", "beams"),
        ("unit", "beams"),
        ("cross", "beams"),
        ("cross", "static cache"),
    ],
)
def test_each_row_is_answered_as_alone(make_model, processor, kind, strategy):
    """Compared are scores and tokens: beams about other pictures would still have the right shapes."""
    model = make_model(attention_kind=kind, cross_attention_every=1)
    open_gates(model)
    settings = {"max_new_tokens": 6, "output_scores": True, "return_dict_in_generate": True, **STRATEGIES[strategy]}
    batch = prompt_for(model, processor, MIXED)
    together = model.generate(**batch, do_sample=False, **settings)
    several = settings.get("num_return_sequences", 1)
    for row, dialogue in enumerate(MIXED):
        inputs = prompt_for(model, processor, [dialogue])
        alone = model.generate(**inputs, do_sample=False, **settings)
        expected = alone.sequences[:, inputs["input_ids"].shape[1] :]
        found = together.sequences[row * several : (row + 1) * several, batch["input_ids"].shape[1] :]
        assert torch.equal(found[:, : expected.shape[1]], expected)
        if "num_beams" in settings:
            scores = together.sequences_scores[row * several : (row + 1) * several]
            torch.testing.assert_close(scores, alone.sequences_scores, atol=1e-4, rtol=1e-4)


def open_gates(model):
    """Gated cross-attention layers start closed; open, they let images through."""
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.constant_(parameter, 1.0)


def prompt_for(model, processor, dialogues):
    """A prompt for a model, which may take one slot an image."""
    slots = processor.image_seq_length
    processor.image_seq_length = 1 if model.config.images_outside else slots
    try:
        return processor.prompt(dialogues)
    finally:
        processor.image_seq_length = slots


def test_several_samples_of_a_row_see_its_images(model, processor):
    """A row asked for several sequences draws what the row repeated in the batch draws."""
    settings = {"max_new_tokens": 8, "do_sample": True}
    repeated = processor.prompt([dialogue for dialogue in MIXED for _ in range(3)])
    torch.manual_seed(0)
    expected = model.generate(**repeated, **settings)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**processor.prompt(MIXED), num_return_sequences=3, **settings), expected)


def test_shared_images_keep_their_rows_in_beams(model, processor):
    dialogues = [prompts()[0], prompts()[1]]
    batch = processor.prompt(dialogues)
    pixels = batch["pixel_values"]
    assert torch.equal(pixels[1], pixels[2])
    batch |= {"pixel_values": pixels[:2], "image_index": torch.tensor([0, 1, 1])}
    settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(generate(model, batch, **settings), generate(model, processor.prompt(dialogues), **settings))


@pytest.mark.parametrize("assistant", ["itself", "another"])
def test_assisted_decoding_answers_as_plain_decoding(make_model, processor, assistant):
    model = make_model()
    helper = model if assistant == "itself" else make_model(projector_type="mlp", attention_kind="causal")
    for dialogue in MIXED:
        batch = processor.prompt([dialogue])
        assert torch.equal(generate(model, batch, assistant_model=helper), generate(model, batch))


@pytest.mark.parametrize("kind", ["mmca", "unit", "cross"])
def test_a_conversation_goes_on_from_its_cache(make_model, processor, kind):
    """With all images given again, with the new ones alone, and without the modality of the new tokens."""
    model = make_model(attention_kind=kind, cross_attention_every=1)
    open_gates(model)
    first = prompts()[0]
    told = prompt_for(model, processor, [first])
    done = model.generate(**told, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    answer = processor.tokenizer.decode(done.sequences[0, told["input_ids"].shape[1] :])
    second = Dialogue((*first.turns[:-1], Turn(first.turns[-1].content, answer), prompts()[1].turns[-1]))
    whole = prompt_for(model, processor, [second])
    ids = torch.cat([done.sequences, whole["input_ids"][:, done.sequences.shape[1] :]], 1)
    whole = {**whole, "input_ids": ids}
    expected = generate(model, whole)
    new_alone = {**whole, "pixel_values": whole["pixel_values"][2:]}
    for inputs in (whole, new_alone):
        cache = model.generate(**told, max_new_tokens=4, do_sample=False, return_dict_in_generate=True).past_key_values
        assert torch.equal(generate(model, inputs, past_key_values=cache), expected)
    text = torch.cat([done.sequences, torch.tensor([[40, 41, 42]])], 1)
    types = torch.nn.functional.pad(told["mm_token_type_ids"], (0, text.shape[1] - told["input_ids"].shape[1]))
    rest = generate(model, {**told, "input_ids": text, "mm_token_type_ids": types, "attention_mask": None})
    assert torch.equal(generate(model, {"input_ids": text}, past_key_values=done.past_key_values), rest)


def test_images_that_fit_no_row_are_refused_with_beams_too(model, processor):
    batch = processor.prompt(MIXED)
    batch["pixel_values"] = batch["pixel_values"][:-1]
    for settings in ({}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="image slots and images do not match"):
            generate(model, batch, **settings)
