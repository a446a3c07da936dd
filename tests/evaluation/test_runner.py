"""Batched answers equal answers one by one; figures of parts equal figures of their dialogues."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from visualchat.dialogue import Dialogue, Turn
from visualchat.evaluation import runner
from visualchat.evaluation.exact_match import Outcome
from visualchat.evaluation.runner import answer_turns, evaluate_parts

MOST = 8


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


DIALOGUES = [
    Dialogue((Turn.ask("What?", [picture(0), picture(1)], "A cat."), Turn.ask("And this?", [picture(2)], "A dog."))),
    Dialogue((Turn.ask("A question without a picture?", answer="Yes."),)),
    Dialogue(
        (Turn.ask("Why?", answer="So."), Turn(("Is", picture(3), "it?"), "No."), Turn.ask("Sure?", answer="Yes."))
    ),
]


def alone(model, processor, dialogue, k, most=MOST):
    """The answer to turn k from the true history, generated without a batch and so without padding."""
    prompt = replace(dialogue, turns=(*dialogue.turns[:k], Turn(dialogue.turns[k].content)))
    features = processor.prompt([prompt])
    out = model.generate(**features, max_new_tokens=most, do_sample=False)
    return processor.tokenizer.decode(out[0, features["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batched_answers_equal_answers_one_by_one(model, processor, batch_size):
    expected = [[alone(model, processor, d, k) for k in range(len(d.turns))] for d in DIALOGUES]
    assert answer_turns(model, processor, DIALOGUES, max_new_tokens=MOST, batch_size=batch_size) == expected
    assert len({answer for row in expected for answer in row}) > 3


def end_where(model, tokenizer, text):
    """Make the model end its answer where it would have begun to say `text`; what it says is otherwise the same."""
    (token,) = tokenizer(text)["input_ids"]
    weight = model.get_output_embeddings().weight.data
    weight[[token, tokenizer.eos_token_id]] = weight[[tokenizer.eos_token_id, token]]


def test_answers_end_at_the_tokenizers_end_token(model, processor):
    """Also where the language model's generation settings name no end token; shorter answers wait for longer ones."""
    (plain,) = answer_turns(model, processor, DIALOGUES[1:2], max_new_tokens=MOST)
    letter = next(c for c in plain[0][1:] if c.isascii() and c not in plain[0][0])
    end_where(model, processor.tokenizer, letter)
    model.generation_config.eos_token_id = None
    ended = answer_turns(model, processor, DIALOGUES, max_new_tokens=MOST)
    assert ended[1] == [plain[0].partition(letter)[0]]
    assert 0 < len(ended[1][0]) < len(plain[0])


def test_no_dialogues_no_answers(model, processor):
    assert answer_turns(model, processor, []) == []


def test_parts_together_and_each(monkeypatch):
    parts = {
        "seen": [
            Outcome("count", 1, True, 3, 3, 0.5),
            Outcome("colour", 2, False, 1, 0, 3.0),
            Outcome("describe", 2, True, 9, 9, 1.0),
        ],
        "unseen": [Outcome("count", 1, True, 4, 4, 0.5), Outcome("describe", 1, False, 9, 1, 50.0)],
    }
    asked = []

    def outcomes_of(model, processor, part, **keywords):
        asked.append((model, processor, keywords))
        return part

    monkeypatch.setattr(runner, "evaluate", outcomes_of)
    found = evaluate_parts("model", "processor", parts, apart=["describe"], blind=True, batch_size=7, description="x")
    assert found == {
        "exact_match/all": 2 / 3,
        "exact_match/count": 1.0,
        "exact_match/colour": 0.0,
        "exact_match/describe": 1 / 2,
        "exact_match/images_1": 1.0,
        "exact_match/images_2": 0.0,
        "answer_loss/all": 4.0 / 8,
        "token_accuracy/all": 7 / 8,
        "seen/exact_match/all": 1 / 2,
        "seen/answer_loss/all": 3.5 / 4,
        "seen/token_accuracy/all": 3 / 4,
        "unseen/exact_match/all": 1.0,
        "unseen/answer_loss/all": 0.5 / 4,
        "unseen/token_accuracy/all": 1.0,
    }
    assert asked == [
        ("model", "processor", {"blind": True, "batch_size": 7, "description": f"x, {name}"}) for name in parts
    ]


def test_a_part_without_an_answer_that_counts_is_named(model, processor):
    listing = Dialogue((Turn.ask("What is there?", [], "things", kind="describe"),))
    with pytest.raises(ValueError, match=r"part 'seen' of the evaluation has no answer .* \(apart: \['describe'\]\)"):
        evaluate_parts(model, processor, {"seen": [listing]}, apart=["describe"])
