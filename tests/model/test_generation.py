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


def test_a_filled_cache_without_the_modality_of_its_tokens_is_refused(model, processor):
    features = processor.prompt([prompts()[0]])
    cache = model(**features, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="key_modality"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    continued = torch.cat([features["input_ids"], torch.tensor([[5, 6]])], 1)
    with pytest.raises(ValueError, match="pass generate the mm_token_type_ids of the whole conversation"):
        model.generate(input_ids=continued, past_key_values=cache, max_new_tokens=2)


def test_beam_search_and_several_samples_run_on_images(model, processor):
    features = processor.prompt(prompts()[:2])
    beams = model.generate(**features, max_new_tokens=5, num_beams=3, num_return_sequences=2, do_sample=False)
    assert beams.shape[0] == 4
    one = model.generate(**features, max_new_tokens=5, num_beams=1, do_sample=False)
    assert one.shape[0] == 2
