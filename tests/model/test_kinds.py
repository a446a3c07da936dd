"""Every kind of attention in the whole model: the same answers packed or not, cached or not, in rounds, when saved."""

import itertools

import pytest
import torch
from PIL import Image
from recomputed import best_tokens

from visualchat.attention import KINDS, Modality
from visualchat.chat import ChatSession
from visualchat.dialogue import Caption, Dialogue, Turn
from visualchat.dialogue.encoding import NO_UNIT
from visualchat.dialogue.template import label_text
from visualchat.model import VisualChatForConditionalGeneration

POINTS = {kind: {"attention_kind": kind} for kind in KINDS} | {
    "image, then self": {"attention_kind": "mmca_joint", "early_attention_kind": "image"},
    "all, then image": {"attention_kind": "image", "early_attention_kind": "causal", "early_attention_share": 0.5},
    "unit, then split": {"attention_kind": "mmca", "early_attention_kind": "unit"},
    "shared": {"attention_kind": "mmca_joint", "image_positions": "shared"},
    "causal, shared": {"attention_kind": "causal", "image_positions": "shared"},
    "split by depth, shared": {
        "attention_kind": "mmca",
        "early_attention_kind": "causal",
        "image_positions": "shared",
    },
}
"""The named kinds, two kinds by depth, and images that share positions: what a model is configured by."""

points = pytest.mark.parametrize("point", POINTS)


def picture(colour):
    return Image.new("RGB", (20, 20), colour)


def dialogues(answer=None):
    red, blue = picture("red"), picture("blue")
    return [
        Dialogue((Turn.ask("Which of them?", [red, blue], answer),), "two"),
        Dialogue((Turn.ask("Hello, this is longer.", [], "Hi."), Turn(("Is", blue, "one", red, "?"), answer)), "later"),
        Dialogue((Turn.ask("Text?", [], answer),), "none"),
        Dialogue((Turn((Caption("a cat"), blue, "What?"), answer),), "a caption first"),
    ]


def test_units_are_labels_and_their_images(processor):
    """Token by token in a batch: decoded, what belongs to a unit is exactly its label, then its image."""
    batch = processor.batch(dialogues("Yes."))
    named = {name: [1, 2] for name in ("two", "later")} | {"none": [], "a caption first": [2]}
    for row, dialogue in enumerate(dialogues("Yes.")):
        units, image = batch["unit_ids"][row], batch["mm_token_type_ids"][row] == Modality.IMAGE
        assert sorted({*units.tolist()} - {NO_UNIT}) == named[dialogue.id]
        assert (units[image] != NO_UNIT).all()
        for number in named[dialogue.id]:
            own = units == number
            assert processor.tokenizer.decode(batch["input_ids"][row][own & ~image]) == label_text(number)
            assert int((own & image).sum()) == processor.image_seq_length
            assert own.nonzero().diff(dim=0).eq(1).all()


@points
@torch.no_grad()
def test_packed_dialogues_and_padded_ones_get_the_logits_of_each_alone(make_deep_model, processor, point):
    """float32 sums in other orders; transformers' own attention for `causal`."""
    model = make_deep_model(**POINTS[point])
    given = dialogues("Yes, it is.")
    alone = [model(**processor.batch([dialogue])).logits for dialogue in given]
    for rows in (None, [4], [1, 3]):
        found = model(**processor.batch(given, rows=rows)).logits
        torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=1e-4)


@points
def test_generation_cached_uncached_alone_and_batched_agree(make_deep_model, processor, point):
    model = make_deep_model(**POINTS[point])

    def answers(features, **settings):
        settings = {"max_new_tokens": 8, "do_sample": False, **settings}
        return model.generate(**features, **settings)[:, features["input_ids"].shape[1] :]

    batch = processor.prompt(dialogues())
    cached = answers(batch)
    assert torch.equal(cached, answers(batch, use_cache=False))
    assert torch.equal(cached, answers(batch, cache_implementation="static"))
    for row, dialogue in enumerate(dialogues()):
        alone = answers(processor.prompt([dialogue]))[0]
        assert torch.equal(alone, cached[row][: len(alone)])


@points
@torch.no_grad()
def test_a_chat_equals_recomputing_every_round_also_after_saving(make_deep_model, processor, tmp_path, point):
    """What was said is best in a single pass over the whole conversation, without a cache, by the saved model."""
    model = make_deep_model(**POINTS[point])
    session, shown = ChatSession(model, processor, max_new_tokens=6), []
    model.save_pretrained(tmp_path)
    again = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.attention == model.config.attention
    for number, images in enumerate(([picture("red")], [], [picture("blue"), picture("green")])):
        asked = len(session._encode(Turn.ask(f"Question {number}?", images))[0].ids)
        list(session.ask(f"Question {number}?", images))
        shown += images
        best = best_tokens(again, processor, session, shown)
        said = session.ids[asked : asked + 6]
        assert best[asked - 1 : asked - 1 + len(said)].tolist() == said
    ids, modality, units = map(torch.tensor, (session.ids, session.modality, session.units))
    for number in (1, 2, 3):
        own = units == number
        assert processor.tokenizer.decode(ids[own & (modality == Modality.TEXT)]) == label_text(number)
        assert int((own & (modality == Modality.IMAGE)).sum()) == processor.image_seq_length


@torch.no_grad()
def test_each_point_computes_something_of_its_own(make_deep_model, processor):
    batch = processor.batch(dialogues("Yes."))
    found = {name: make_deep_model(**config)(**batch).logits for name, config in POINTS.items()}
    for one, other in itertools.combinations(found, 2):
        assert (found[one] - found[other]).abs().max() > 1e-2, (one, other)


@pytest.mark.parametrize("kind", ["unit", "unit_split", "label", "image"])
def test_without_unit_ids_images_are_refused_and_text_is_not(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    batch = processor.batch(dialogues("Yes.")[:1])
    del batch["unit_ids"]
    with pytest.raises(ValueError, match=rf"tells images apart \(attention kind '{kind}', .* needs unit_ids \(B, K\)"):
        model(**batch)
    text = processor.batch(dialogues("Yes.")[2:3])
    expected = model(**text).logits
    del text["unit_ids"]
    assert torch.equal(model(**text).logits, expected)


def test_an_unknown_kind_is_refused_with_the_nearest(make_model):
    with pytest.raises(
        ValueError, match=r"unknown attention kind 'units', expected one of .*cross; did you mean unit\?"
    ):
        make_model(attention_kind="units")
