"""Every promise of reuse in every family: bits that depend on no store, answers that are those of recomputing."""

import numpy as np
import pytest
from recorded import (
    Recorded,
    a_dialogue,
    assert_answers_are_those_of_one_pass,
    assert_same_bits,
    from_nothing,
    joined,
    language_folder,
    picture,
)

from visualchat.engine.image_store import ImageStore

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma")
ACTIONS = ("ask", "ask", "ask", "undo", "edit", "fork", "load")


def course(model, processor, store, folder, seed, steps):
    """The logits of all answers of a session that does this and that, and of another user's in between; the session."""
    rng = np.random.default_rng(seed)
    session, other = (Recorded(model, processor, store=store) for _ in range(2))
    logits = []
    for step in range(steps):
        action = rng.choice(ACTIONS) if session.turns else "ask"
        if action == "ask":
            images = [picture(image) for image in rng.integers(0, 4, rng.integers(0, 3))]
            logits.append(session.answer(f"Question {step}?", images))
        elif action == "undo":
            session.undo()
        elif action == "edit":
            number = int(rng.integers(1, len(session.turns) + 1))
            logits.append(session.recorded(session.edit(number, f"Edited {step}?")))
        elif action == "fork":
            left, session = session, session.fork()
            logits.append(left.answer("Never kept?", [picture(0)]))
        else:
            session.save(folder / str(step))
            session.load(folder / str(step))
        if step % 3 == 0:
            logits.append(other.answer("What?", [picture(image) for image in rng.integers(0, 4, 1)]))
    return logits, session


def assert_random_courses_depend_on_no_store(model, processor, folder, seeds, steps):
    """Small and warm or new and empty, the bits are the same; and the conversation's answers are those of one pass."""
    one = ImageStore()
    a_dialogue(model, processor, one, [("Hello.", []), ("Which?", [0])])
    busy = ImageStore(2 * one.stats.device_bytes, 2 * one.stats.device_bytes)
    a_dialogue(model, processor, busy, [("Which?", [3, 2, 1, 0])])
    for seed in seeds:
        known, session = course(model, processor, busy, folder / f"known {seed}", seed, steps)
        new, _ = course(model, processor, ImageStore(), folder / f"new {seed}", seed, steps)
        assert_same_bits(known, new)
        if session.turns:
            likeliest = from_nothing(model, session).argmax(-1).tolist()
            for kept in session.rounds:
                start = kept.end - len(kept.said)
                assert likeliest[start - 1 : kept.end - 2] == kept.said[:-1]
    assert busy.stats.hits
    assert busy.stats.evicted


@pytest.mark.parametrize(("kind", "numbers"), [("mmca", "none"), ("unit", "none"), ("mmca_joint", "learned")])
def test_random_courses_depend_on_no_store(make_model, processor, tmp_path, kind, numbers):
    model = make_model(attention_kind=kind, image_numbers=numbers)
    assert_random_courses_depend_on_no_store(model, processor, tmp_path, [1], 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mmca", "unit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_promise_holds_in_every_family(backbones, tokenizer, processor, tmp_path, family, kind):
    """Positions, orders, other images and users; A, B, A; ten rounds with images in 1, 3 and 7; random sessions."""
    model = joined(backbones, language_folder(tmp_path / "language", tokenizer, family), kind)
    store = ImageStore()
    dialogues = [
        [("Which?", [0])],
        [("Which?", [1])],
        [("Which?", [0])],
        [("Hello, this is a longer question.", []), ("Which?", [2, 1, 0])],
        [("Same twice?", [0, 0, 1]), ("And?", [2])],
        [("Which?", [1, 0])],
    ]
    for rounds in (*dialogues, *reversed(dialogues)):
        known, _ = a_dialogue(model, processor, store, rounds)
        assert_same_bits(known, a_dialogue(model, processor, ImageStore(), rounds)[0])
    rounds = [(f"Question {n}?", {1: [0, 1], 3: [2], 7: [0, 3, 1]}.get(n, [])) for n in range(1, 11)]
    logits, session = a_dialogue(model, processor, store, rounds)
    assert_answers_are_those_of_one_pass(model, session, logits)
    assert_random_courses_depend_on_no_store(model, processor, tmp_path, [2], 14)
