"""Exact match in one forward pass equals generating every answer; and its arithmetic."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from visualchat.dialogue import Caption, Dialogue, Turn
from visualchat.dialogue.encoding import IGNORE_INDEX as IGNORED
from visualchat.dialogue.encoding import encode_text
from visualchat.evaluation.exact_match import Outcome, correct_answers, evaluate, prefixed, summarise

LETTERS = "BCDEFGHJKLMNOPRSTUVWXYZ0"
"""One token each, and no two of them merge."""


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def speak_in_letters(model, tokenizer):
    """Let the model say `LETTERS` only, and end its answer often."""
    bias = torch.full((len(tokenizer),), -1e4)
    bias[encode_text(tokenizer, LETTERS)] = 0.0
    bias[tokenizer.eos_token_id] = 0.1
    model.get_output_embeddings().register_forward_hook(lambda head, args, logits: logits + bias)


def greedy(model, processor, dialogue, most):
    """The model's own token ids for the open last turn, end token included; alone, without padding."""
    features = processor.prompt([dialogue])
    out = model.generate(**features, max_new_tokens=most, do_sample=False)
    return out[0, features["input_ids"].shape[1] :].tolist()


def opened(dialogue, k):
    """The dialogue up to turn k, which is open."""
    return replace(dialogue, turns=(*dialogue.turns[:k], replace(dialogue.turns[k], answer=None)))


CHANGES = {
    "own": lambda answer: answer,
    "first letter": lambda answer: ("B" if answer[0] != "B" else "C") + answer[1:],
    "last letter": lambda answer: answer[:-1] + ("B" if answer[-1] != "B" else "C"),
    "ends too early": lambda answer: answer[:-1],
    "ends too late": lambda answer: answer + "B",
    "empty": lambda answer: "",
}


def mixed_dialogues(model, processor, count, for_empty=""):
    """Dialogues whose true answers are the model's own, some of them changed by a letter; `kind` names the change.

    `for_empty` stands where an answer would be empty, which data may not hold.
    """
    rng = random.Random(0)
    changes = itertools.cycle(["own", *CHANGES])
    made = []
    for index in range(count):
        turns = []
        for _ in range(rng.randint(1, 4)):
            question = "".join(rng.choices("abc de", k=rng.randint(1, 12))) + "?"
            turn = Turn.ask(question, [picture(rng.randrange(99)) for _ in range(rng.choice((0, 1, 2)))])
            said = greedy(model, processor, Dialogue((*turns, turn)), 12)
            answer = processor.tokenizer.decode(said, skip_special_tokens=True)
            change = next(changes) if answer else "own"
            turns.append(replace(turn, answer=CHANGES[change](answer) or for_empty, kind=change))
        made.append(Dialogue(tuple(turns), f"row {index}"))
    return made


def generated_exactly(model, processor, dialogue):
    """For each turn, whether generating from the true history gives the true answer and then the end token."""
    exact = []
    for k, turn in enumerate(dialogue.turns):
        truth = [*encode_text(processor.tokenizer, turn.answer), processor.tokenizer.eos_token_id]
        exact.append(greedy(model, processor, opened(dialogue, k), len(truth)) == truth)
    return exact


def test_one_forward_pass_tells_what_generating_every_answer_tells(model, processor):
    speak_in_letters(model, processor.tokenizer)
    dialogues = mixed_dialogues(model, processor, 10)
    expected = [generated_exactly(model, processor, dialogue) for dialogue in dialogues]
    features = processor.batch(dialogues)
    assert not features["attention_mask"].all(), "rows of several lengths"
    with torch.no_grad():
        logits = model(**features).logits
    assert correct_answers(logits, features["labels"]) == [exact for row in expected for exact in row]

    kinds = {
        (turn.kind, exact)
        for d, row in zip(dialogues, expected, strict=True)
        for turn, exact in zip(d.turns, row, strict=True)
    }
    assert ("own", True) in kinds
    assert {kind for kind, exact in kinds if not exact} >= set(CHANGES) - {"own"}
    assert not {kind for kind, exact in kinds if exact} - {"own"}


def logits_saying(tokens, vocabulary=10):
    return torch.nn.functional.one_hot(torch.tensor(tokens, dtype=torch.long), vocabulary).float()


@pytest.mark.parametrize(
    ("labels", "said", "expected"),
    [
        pytest.param([[IGNORED, 1, 2]], [1, 2], [True], id="one right"),
        pytest.param([[IGNORED, 1, 2]], [1, 3], [False], id="wrong at its end"),
        pytest.param([[IGNORED, 1, 2]], [3, 2], [False], id="wrong at its start"),
        pytest.param([[IGNORED, 1, IGNORED, 2, 3, IGNORED]], [1, 2, 4], [True, False], id="two in a row"),
        pytest.param([[IGNORED, 1, IGNORED, 2, 3, IGNORED]], [4, 2, 3], [False, True], id="the other one"),
        pytest.param([[IGNORED, 1, 2], [IGNORED, 3, 4]], [1, 2, 3, 5], [True, False], id="two rows, end to start"),
        pytest.param(
            [[IGNORED, IGNORED, 1, 2], [IGNORED, 3, IGNORED, IGNORED], [IGNORED] * 4, [IGNORED, 4, IGNORED, 5]],
            [1, 2, 9, 4, 5],
            [True, False, True, True],
            id="padding and a row without an answer",
        ),
        pytest.param([[IGNORED, IGNORED]], [], [], id="no answers"),
    ],
)
def test_answers_are_told_apart(labels, said, expected):
    assert correct_answers(logits_saying(said).reshape(-1, 10), torch.tensor(labels)) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluate_tells_kind_images_and_outcome_of_every_answer(model, processor, batch_size):
    speak_in_letters(model, processor.tokenizer)
    dialogues = mixed_dialogues(model, processor, 5, for_empty="B")
    expected = [
        (turn.kind, len(dialogue.images), exact)
        for dialogue in dialogues
        for turn, exact in zip(dialogue.turns, generated_exactly(model, processor, dialogue), strict=True)
    ]
    found = evaluate(model, processor, iter(dialogues), batch_size=batch_size)
    assert [(o.kind, o.images, o.correct) for o in found] == expected
    assert len({o.correct for o in found}) == 2
    assert [(o.tokens, o.right, pytest.approx(o.loss, rel=1e-5)) for o in found] == [  # one by one, without padding
        row for dialogue in dialogues for row in token_by_token(model, processor, dialogue)
    ]
    figures = summarise(found)
    (batch,) = [processor.batch(dialogues)]
    with torch.no_grad():
        assert figures["answer_loss/all"] == pytest.approx(float(model(**batch).loss), rel=1e-5)


def token_by_token(model, processor, dialogue):
    """Of each answer its tokens, how many are the model's best, and their loss: from plain logits at every position."""
    features = processor.batch([dialogue])
    labels = features.pop("labels")[0]
    with torch.no_grad():
        scores = model(**features).logits[0].double().log_softmax(-1)
    rows, before = [], False
    for position in range(1, len(labels)):
        answered = bool(labels[position] != IGNORED)
        if answered and not before:
            rows.append([0, 0, 0.0])
        if answered:
            rows[-1][0] += 1
            rows[-1][1] += int(scores[position - 1].argmax() == labels[position])
            rows[-1][2] -= float(scores[position - 1, labels[position]])
        before = answered
    return [tuple(row) for row in rows]


def test_a_blind_evaluation_hides_the_images_and_counts_them_still(model, processor):
    speak_in_letters(model, processor.tokenizer)
    dialogues = []
    for seed in range(6):
        prompt = Dialogue((Turn.ask("What?", [picture(seed), picture(seed + 10)]),))
        own = processor.tokenizer.decode(greedy(model, processor, prompt, 12), skip_special_tokens=True)
        dialogues.append(Dialogue((replace(prompt.turns[0], answer=own or "B"), Turn.ask("Why?", answer="B"))))
    seeing = evaluate(model, processor, dialogues)
    blind = evaluate(model, processor, dialogues, blind=True)
    hidden = evaluate(model, processor, [dialogue.without_images() for dialogue in dialogues])
    assert [o.correct for o in blind] == [o.correct for o in hidden]
    assert [o.correct for o in blind] != [o.correct for o in seeing]
    assert [(o.kind, o.images) for o in blind] == [(o.kind, o.images) for o in seeing]


def test_a_caption_counts_as_the_image_it_stands_for(model, processor):
    turns = (Turn((Caption("a cat"), picture(0), "What?"), "X"), Turn.ask("And?", [picture(1)], "Y"))
    for blind in (False, True):
        outcomes = evaluate(model, processor, [Dialogue(turns)], blind=blind)
        assert [outcome.images for outcome in outcomes] == [3, 3]


def test_a_turn_of_images_alone_is_judged_blind_as_well(model, processor):
    """No reader gives one, but people who write dialogues may: the blind model gets the turn with nothing in it."""
    rounds = (Turn((picture(0),), "X"), Turn(("Same ", picture(1)), "Y"))
    seeing, blind = (evaluate(model, processor, [Dialogue(rounds)], blind=blind) for blind in (False, True))
    assert [(o.images, o.tokens) for o in blind] == [(o.images, o.tokens) for o in seeing]
    assert all(math.isfinite(outcome.loss) for outcome in blind)
    assert [o.loss for o in blind] != [o.loss for o in seeing]


def test_evaluate_needs_answers(model, processor):
    dialogues = [Dialogue((Turn.ask("a", answer="b"),)), Dialogue((Turn.ask("a", answer=""),), "row 7")]
    with pytest.raises(ValueError, match="row 7: turn 1 has no answer"):
        evaluate(model, processor, dialogues)


def test_evaluate_of_nothing_is_nothing(model, processor):
    assert evaluate(model, processor, []) == []


def test_summary():
    outcomes = [
        Outcome("colour", 1, True, 2, 2, 0.5),
        Outcome("colour", 1, False, 3, 1, 4.5),
        Outcome("colour", 2, True, 1, 1, 0.0),
        Outcome("count", 2, True, 1, 1, 0.0),
        Outcome("", 0, False, 3, 0, 5.0),
    ]
    assert summarise(outcomes) == {
        "exact_match/all": 3 / 5,
        "exact_match/colour": 2 / 3,
        "exact_match/count": 1.0,
        "exact_match/images_0": 0.0,
        "exact_match/images_1": 1 / 2,
        "exact_match/images_2": 1.0,
        "answer_loss/all": 1.0,
        "token_accuracy/all": 1 / 2,
    }


def test_kinds_apart_count_for_themselves_alone():
    outcomes = [
        Outcome("colour", 1, True, 2, 2, 0.5),
        Outcome("describe", 1, False, 9, 0, 90.0),
        Outcome("describe", 3, True, 9, 9, 9.0),
    ]
    assert summarise(outcomes, ["describe", "unheard of"]) == {
        "exact_match/all": 1.0,
        "exact_match/colour": 1.0,
        "exact_match/describe": 1 / 2,
        "exact_match/images_1": 1.0,
        "answer_loss/all": 0.25,
        "token_accuracy/all": 1.0,
    }
    assert summarise(outcomes[1:], ["describe"]) == {"exact_match/describe": 1 / 2}
    assert summarise([]) == {}


def test_prefix():
    assert prefixed("blind", {"exact_match/all": 0.5}) == {"blind/exact_match/all": 0.5}
