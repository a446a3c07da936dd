"""Answers given the true history and the model's own: equal to asking one by one, exact where the loss says so."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from visualchat.dialogue import Dialogue, Expected, Turn
from visualchat.evaluation.exact_match import evaluate
from visualchat.evaluation.protocol import Asker, steps
from visualchat.generation.answering import batched, open_at

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
BOTH = ("teacher_forced", "free_running")


def asker(model, processor, modes=BOTH, **settings):
    return Asker(
        model.eval(), processor, batched(model, processor, max_new_tokens=8, batch_size=2), modes, 2, **settings
    )


def own_answer(model, processor, dialogue, k):
    """The model's answer to a round, asked alone, the rounds before as they are."""
    (answer,) = batched(model, processor, max_new_tokens=8, batch_size=1)([open_at(dialogue, k)])
    return answer


@pytest.fixture
def dialogues(model, processor):
    """Made so that the model gives the first answer of one exactly: its own, which is made to end where it can."""
    later = Turn.ask("And?", answer="so"), Turn.ask("Why?", answer="x")
    found = [
        Dialogue((Turn.ask(f"What {n}?", images, "no"), *later), id=f"d{n}")
        for n, images in enumerate(([RED], [RED, BLUE], []))
    ]
    tokenizer, end = processor.tokenizer, processor.end_token_ids[-1]
    weight = model.get_output_embeddings().weight.data
    for index, dialogue in enumerate(found):
        ids = own_answer(model, processor, dialogue, 0).ids
        asked = processor.encode(open_at(dialogue, 0)).input_ids
        for length in range(1, len(ids)):
            text = tokenizer.decode(ids[:length])
            again = tokenizer(text, add_special_tokens=False)["input_ids"]
            if again == [*ids[:length]] and text.strip() == text and ids[length] not in (*asked, *ids[:length]):
                weight[[ids[length], end]] = weight[[end, ids[length]]]
                first = replace(dialogue.turns[0], answer=text)
                found[index] = replace(dialogue, turns=(first, *dialogue.turns[1:]))
                return found
    raise AssertionError("no answer of the random model can be written down")


def test_answers_equal_those_asked_one_by_one(model, processor, dialogues):
    found = asker(model, processor).predictions(dialogues, dialogues, "tuned", "p")
    assert [(p.mode, p.dialogue, p.round) for p in found] == [
        (mode, f"d{n}", k) for mode in BOTH for n in range(3) for k in (1, 2, 3)
    ]
    forced, free = found[:9], found[9:]
    assert len({p.exact for p in forced}) == 2, "some answers are exact, some are not"
    for n, dialogue in enumerate(dialogues):
        own = dialogue
        for k in range(3):
            given, said = own_answer(model, processor, dialogue, k), own_answer(model, processor, own, k)
            assert (forced[3 * n + k].answer, forced[3 * n + k].ended) == (given.text, given.ended)
            assert (free[3 * n + k].answer, free[3 * n + k].ended) == (said.text, said.ended)
            turn = replace(own.turns[k], answer=said.text)
            own = replace(own, turns=(*own.turns[:k], turn, *own.turns[k + 1 :]))
            assert free[3 * n + k].exact == (said.text == dialogue.turns[k].answer and said.ended == "stop")


def test_figures_are_those_of_one_forward_pass(model, processor, dialogues):
    expected = evaluate(model, processor, dialogues, batch_size=2)
    found = asker(model, processor, BOTH[:1]).predictions(dialogues, dialogues, "tuned", "p")
    assert [(p.exact, p.tokens, p.right, p.loss) for p in found] == [
        (o.correct, o.tokens, o.right, o.loss) for o in expected
    ]
    alone = asker(model, processor, BOTH[1:]).predictions(dialogues, dialogues, "tuned", "p")
    assert alone == asker(model, processor).predictions(dialogues, dialogues, "tuned", "p")[9:]
    assert {(p.tokens, p.right, p.loss) for p in alone} == {(None, None, None)}
    blind = asker(model, processor, BOTH[:1]).predictions(
        dialogues, [d.without_images() for d in dialogues], "blind", "p"
    )
    assert [p.loss for p in blind] == [o.loss for o in evaluate(model, processor, dialogues, blind=True, batch_size=2)]
    assert [p.images for p in blind] == [1] * 3 + [2] * 3 + [0] * 3


def test_each_option_is_measured_as_the_answer(model, processor):
    choice = Turn(("Which?", RED), "B", expected=Expected(options=("cat", "a long dog")))
    named = Turn(("Which?",), "dog", expected=Expected(options=("dog", "cat", "owl")))
    dialogue = Dialogue((Turn.ask("Hm?", answer="m"), choice, named), id="d")
    found = asker(model, processor, BOTH, option_likelihood=True).predictions([dialogue], [dialogue], "tuned", "p")
    assert [len(p.option_losses) for p in found] == [0, 2, 3, 0, 0, 0]
    assert found[1].option_losses[1] == pytest.approx(found[1].loss, rel=1e-5)
    assert found[2].option_losses[0] == pytest.approx(found[2].loss, rel=1e-5)
    other = replace(dialogue, turns=(*dialogue.turns[:2], replace(named, answer="owl")))
    (loss,) = [o.loss for o in evaluate(model, processor, [other])][2:]
    assert found[2].option_losses[2] == pytest.approx(loss, rel=1e-5)


def test_a_loss_that_is_no_number_and_a_prompt_without_room_are_named(model, processor):
    dialogue = Dialogue((Turn.ask("What?", answer="x"), Turn.ask("y" * 30, answer="z")), id="row 7")
    model.config.text_config.max_position_embeddings = len(processor.encode(open_at(dialogue, 1)))
    with pytest.raises(ValueError, match=r"row 7, round 2: the prompt's .* leave the model no room"):
        asker(model, processor).predictions([dialogue], [dialogue], "tuned", "p")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"row 7, round 1: the loss is nan: the model's weights are damaged"):
        asker(model, processor).predictions([dialogue], [dialogue], "tuned", "p")


def test_steps_go_column_by_column():
    parts = {"a": [Dialogue((Turn.ask("x"),))] * 5, "b": [Dialogue((Turn.ask("x"),))] * 2}
    assert [(c, p, [*r]) for c, p, r in steps(parts, ["tuned", "blind"], 3)] == [
        (c, p, r) for c in ("tuned", "blind") for p, r in (("a", [0, 1, 2]), ("a", [3, 4]), ("b", [0, 1]))
    ]
