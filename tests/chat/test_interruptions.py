"""Answers that are cut short, never read, or fail."""

import pytest
import torch
from talking import MOST, ROUNDS, prompt_of, recompute, state, talk

from visualchat.chat import ChatSession
from visualchat.chat import session as session_module


class Patient(session_module._Stopped):
    """Lets three tokens be said, then waits until the stream is closed."""

    steps = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.steps += 1
        if self.steps < 3:
            return torch.zeros(len(input_ids), dtype=torch.bool)
        assert self.event.wait(60)
        return super().__call__(input_ids, scores, **kwargs)


class Breaking(Patient):
    """Lets two tokens be said, then fails."""

    def __call__(self, input_ids, scores, **kwargs):
        if self.steps == 2:
            raise RuntimeError("out of memory")
        return super().__call__(input_ids, scores, **kwargs)


class BreakingWhenClosed(Patient):
    """Fails once the stream is closed."""

    def __call__(self, input_ids, scores, **kwargs):
        if super().__call__(input_ids, scores, **kwargs).any():
            raise RuntimeError("out of memory")
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_closing_the_stream_stops_and_keeps_what_was_said(session, processor, monkeypatch):
    whole = recompute(session.model, processor, ROUNDS[:1], cached=True)[0]
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "_Stopped", Patient)
        stream = session.ask(*ROUNDS[0])
        next(stream)
        stream.close()
    said = [*whole[:3], processor.tokenizer.eos_token_id]
    assert session.ids == [*prompt_of(processor, ROUNDS[:1], [])[0], *said]
    assert session.turns[0].answer == processor.tokenizer.decode(whole[:3])
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


def read(stream):
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream)


def close(stream):
    next(stream)
    stream.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("failing", "hear"), [(Breaking, read), (BreakingWhenClosed, close)])
def test_a_failed_answer_leaves_the_conversation_as_it_was(model, processor, monkeypatch, failing, hear, temperature):
    session = ChatSession(model, processor, max_new_tokens=MOST, temperature=temperature, seed=1)
    expected = talk(session)
    session.reset()
    talk(session, ROUNDS[:1])
    kept = state(session)[:3]
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "_Stopped", failing)
        hear(session.ask(*ROUNDS[1]))
    assert state(session) == (*kept, 0)  # computed again with the next round
    assert talk(session, ROUNDS[1:]) == expected[1:]
