"""Rounds are answered in order, each given the answers before it; batches answer as one prompt does alone."""

from dataclasses import replace

import pytest
from PIL import Image

from visualchat.dialogue import Dialogue, Turn
from visualchat.engine import Engine
from visualchat.generation.answer import Answer
from visualchat.generation.answering import answer_rounds, batched, by_engine, open_at

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
LONG = Dialogue((Turn.ask("A?", [RED], "a"), Turn.ask("B?", answer="b"), Turn.ask("C?", [BLUE], "c")), id="long")
SHORT = Dialogue((Turn.ask("D?", answer="d"), Turn.ask("E?", answer="e")), id="short")


def spoken(dialogue):
    return " ".join(f"{turn.question}{turn.answer if turn.answer is not None else ''}" for turn in dialogue.turns)


def test_each_round_is_given_what_stands_before_it():
    asked = []

    def answer(prompts):
        asked.append([spoken(prompt) for prompt in prompts])
        return [Answer(prompt.turns[-1].question[0] * 2, "stop", ()) for prompt in prompts]

    found = answer_rounds([LONG, SHORT, LONG], [[0, 2], [0, 1], []], answer)
    assert asked == [["A?", "D?"], ["A?AA B?b C?", "D?DD E?"]]
    assert [{k: one.text for k, one in of.items()} for of in found] == [{0: "AA", 2: "CC"}, {0: "DD", 1: "EE"}, {}]


def test_a_conversation_that_cannot_be_answered_leaves_the_others():
    def answer(prompts):
        return [
            ValueError("too long") if prompt.id == "long" and len(prompt.turns) > 1 else Answer("x", "stop", ())
            for prompt in prompts
        ]

    long, short = answer_rounds([LONG, SHORT], [[0, 1, 2], [0, 1]], answer)
    assert str(long) == "round 2: too long"
    assert [*short] == [0, 1]


def test_answers_end_by_themselves_or_are_cut(model, processor):
    prompts = [open_at(d, k) for d in (LONG, SHORT) for k in range(len(d.turns))]
    (whole,) = batched(model, processor, max_new_tokens=12, batch_size=1)(prompts[:1])
    assert (whole.ended, len(whole.ids)) == ("length", 12)
    end = processor.end_token_ids[-1]
    weight = model.get_output_embeddings().weight.data
    weight[[whole.ids[3], end]] = weight[[end, whole.ids[3]]]  # now it ends where it said that
    (ended,) = batched(model, processor, max_new_tokens=12, batch_size=1)(prompts[:1])
    assert ended.ended == "stop"
    assert ended.ids == (*whole.ids[: whole.ids.index(whole.ids[3])], end)
    assert ended.text == processor.tokenizer.decode(ended.ids[:-1])
    together = batched(model, processor, max_new_tokens=12, batch_size=3)(prompts)
    alone = [batched(model, processor, max_new_tokens=12, batch_size=1)([prompt])[0] for prompt in prompts]
    assert together == alone


def test_the_longest_prompt_of_a_batch_does_not_cut_the_others(model, processor):
    short = open_at(SHORT, 0)
    room = 3
    limit = len(processor.encode(_longer(short, 20))) + room
    prompts = [short, _longer(short, 20), _longer(short, 20 + room)]
    with_room = [batched(model, processor, max_new_tokens=12, batch_size=1)([prompt])[0] for prompt in prompts]
    assert min(len(answer.ids) for answer in with_room[:2]) > room
    model.config.text_config.max_position_embeddings = limit
    answers = batched(model, processor, max_new_tokens=12, batch_size=3)(prompts)
    assert answers[0] == with_room[0]
    assert (answers[1].ids, answers[1].ended) == (with_room[1].ids[:room], "length")
    assert str(answers[2]) == f"the prompt's {limit} tokens leave the model no room for an answer"


def _longer(prompt, letters):
    return replace(prompt, turns=(Turn.ask("D?" + "x" * letters),))


@pytest.mark.parametrize("kind", ["causal", "unit"])
def test_other_kinds_of_attention_answer_as_alone(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    prompts = [open_at(d, k) for d in (LONG, SHORT) for k in range(len(d.turns))]
    together = batched(model, processor, max_new_tokens=6, batch_size=5)(prompts)
    assert together == [batched(model, processor, max_new_tokens=6, batch_size=1)([prompt])[0] for prompt in prompts]


def engine_of(model, processor):
    return Engine(model, processor, max_running=2)


def test_the_engine_answers_as_batches_do_and_draws_by_dialogue_and_round(model, processor):
    prompts = [open_at(d, k) for d in (LONG, SHORT) for k in range(len(d.turns))]
    greedy = {"temperature": 0.0, "top_p": None, "stop": []}
    answer = by_engine(engine_of(model, processor), max_new_tokens=6, seed=0, sampling=greedy)
    assert answer(prompts) == batched(model, processor, max_new_tokens=6, batch_size=5)(prompts)
    drawing = {**greedy, "temperature": 2.0}
    answer = by_engine(engine_of(model, processor), max_new_tokens=6, seed=0, sampling=drawing)
    drawn = answer(prompts)
    assert [answer([prompt])[0] for prompt in reversed(prompts)] == drawn[::-1], "neighbours change nothing"
    other = by_engine(engine_of(model, processor), max_new_tokens=6, seed=1, sampling=drawing)(prompts)
    assert all(one.text != two.text for one, two in zip(drawn, other, strict=True))
    renamed = [replace(prompt, id="another") for prompt in prompts[:1]]
    assert answer(renamed)[0].text != drawn[0].text


def test_the_engine_leaves_answers_the_room_that_there_is(model, processor):
    prompt = open_at(SHORT, 0)
    length = len(processor.encode(prompt))
    greedy = {"temperature": 0.0, "top_p": None, "stop": []}
    (whole,) = by_engine(engine_of(model, processor), max_new_tokens=12, seed=0, sampling=greedy)([prompt])
    assert len(whole.ids) > 3
    model.config.text_config.max_position_embeddings = length + 3
    answer = by_engine(engine_of(model, processor), max_new_tokens=12, seed=0, sampling=greedy)
    cut, full = answer([prompt, _longer(prompt, 3 + len("D?"))])
    assert (cut.ids, cut.ended) == (whole.ids[:3], "length")
    assert "leave the model no room for an answer" in str(full)
