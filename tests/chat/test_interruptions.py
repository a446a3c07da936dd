"""Answers that are cut short, never read, or fail."""

import gc
import weakref

import pytest
import torch
from talking import MOST, ROUNDS, prompt_of, recompute, state, talk

from visualchat.chat import ChatSession
from visualchat.engine.answering import Answerer
from visualchat.engine.sampling import NotNumbers


def failing(patch, step, error, late=False):
    """Let the step behind so many tokens of an answer fail, before its first layer or behind its last."""
    following, steps = Answerer.following, []

    def step_or_fail(self, token, cache):
        steps.append(token)
        if len(steps) == step and not late:
            raise error
        logits = following(self, token, cache)
        if len(steps) == step:
            raise error
        return logits

    patch.setattr(Answerer, "following", step_or_fail)


@pytest.mark.parametrize("how", ["closed", "interrupted", "interrupted late"])
def test_an_answer_that_is_cut_short_keeps_what_was_said(session, processor, monkeypatch, how):
    space, fourth = (
        processor.tokenizer(" ")["input_ids"][0],
        recompute(session.model, processor, ROUNDS[:1], cached=True)[0][3],
    )
    with torch.no_grad():
        weight = session.model.get_output_embeddings().weight
        weight[[space, fourth]] = weight[[fourth, space]]
    whole = recompute(session.model, processor, ROUNDS[:1], cached=True)[0]
    if how == "closed":
        stream = session.ask(*ROUNDS[0])
        next(stream)
        stream.close()
    else:
        with monkeypatch.context() as patch:
            failing(patch, 3, KeyboardInterrupt(), late=how == "interrupted late")
            with pytest.raises(KeyboardInterrupt):
                list(session.ask(*ROUNDS[0]))
    count = len(session.rounds[0].said) - 1
    said = [*whole[:count], processor.tokenizer.eos_token_id]
    assert count == (whole.index(space) + 1 if how == "closed" else 3) < len(whole) - 1  # a piece ends with a space
    assert session.ids == [*prompt_of(processor, ROUNDS[:1], [])[0], *said]
    assert session.turns[0].answer == processor.tokenizer.decode(whole[:count])
    list(session.ask(*ROUNDS[1]))
    ids, modality = prompt_of(processor, ROUNDS[:2], [said])
    assert session.ids[: len(ids)] == ids
    expected = session.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        mm_token_type_ids=torch.tensor([modality]),
        pixel_values=processor.image_processor(images=list(ROUNDS[0][1]), return_tensors="pt")["pixel_values"],
        do_sample=False,
        max_new_tokens=MOST,
    )
    assert session.ids[: expected.shape[1]] == expected[0].tolist()


def test_a_stream_that_was_never_read_counts_for_nothing(session):
    expected = talk(session)
    session.reset()
    before = state(session)
    session.ask(*ROUNDS[2]).close()
    assert state(session) == before
    assert talk(session) == expected


def ask(session):
    return session.ask(*ROUNDS[2])


def edit(session):
    return session.edit(1, "Again?")


def forget(session):
    """Ask where the oldest round must be dropped."""
    limits, session.drop_oldest = session.model.config.text_config, True
    limits.max_position_embeddings = len(session.ids) + MOST + 10
    return session.ask(*ROUNDS[2])


@pytest.mark.parametrize("read", [0, 1])
def test_a_session_that_is_left_in_the_middle_of_an_answer_is_gone_at_once(model, processor, read):
    """Its keys and values with it, without waiting for the garbage collector."""
    gc.disable()
    try:
        for _ in range(3):
            session = ChatSession(model, processor, max_new_tokens=MOST)
            talk(session, ROUNDS[:1])
            stream = session.edit(1, "Really?")
            for _ in range(read):
                next(stream)
            left = weakref.ref(session), weakref.ref(session.cache)
            del session, stream
            assert [ref() for ref in left] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("begin", [ask, edit, forget])
def test_a_failed_answer_leaves_the_conversation_as_it_was(make_model, processor, monkeypatch, begin, temperature):
    """Nothing is lost either by an edit, or by dropping the oldest round, whose answer fails or is never read."""
    model = make_model()
    session = ChatSession(model, processor, max_new_tokens=MOST, temperature=temperature, seed=1)
    expected = talk(session)
    session.reset()
    talk(session, ROUNDS[:2])
    kept, limit = state(session)[:3], model.config.text_config.max_position_embeddings
    for error, step in ((RuntimeError("out of memory"), 2), (KeyboardInterrupt(), None)):
        with monkeypatch.context() as patch:
            if step:
                failing(patch, step, error)
            else:  # before the first token
                patch.setattr(Answerer, "prefill", lambda *given, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)):
                list(begin(session))
        assert state(session)[:3] == kept
    begin(session)  # and never read
    session.edit(1, "Once more?").close()
    assert state(session)[:3] == kept
    model.config.text_config.max_position_embeddings = limit
    with pytest.raises(ValueError, match="more than the 2048 that the model can hold"):
        session.edit(1, "x" * 2048)
    assert state(session)[:3] == kept
    assert talk(session, ROUNDS[2:]) == expected[2:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_no_answer(model, processor, temperature):
    session = ChatSession(model, processor, max_new_tokens=MOST, temperature=temperature)
    talk(session, ROUNDS[:1])
    before = state(session)[:3]
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NotNumbers, match=r"the model's logits are not numbers \(nan\)"):
        list(session.ask(*ROUNDS[1]))
    assert state(session)[:3] == before
