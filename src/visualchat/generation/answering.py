"""Answers to many prompts at a time, and conversations whose open rounds are answered one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import filler_token_id
from visualchat.engine import Engine, Request
from visualchat.generation.answer import Answer, Ended
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor

Answering = Callable[[Sequence[Dialogue]], list[Answer | ValueError]]
"""Answers the open last round of each dialogue, or says why it cannot."""


def batched(
    model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, *, max_new_tokens: int, batch_size: int
) -> Answering:
    """Greedy answers by transformers' `generate`, so many at a time; also of a model split over processes.

    An answer has less room than `max_new_tokens` where the model's positions end sooner.
    """

    def answer(prompts: Sequence[Dialogue]) -> list[Answer | ValueError]:
        found: list[Answer | ValueError] = []
        for start in range(0, len(prompts), batch_size):
            found += _answer_batch(model, processor, prompts[start : start + batch_size], max_new_tokens)
        return found

    return answer


@torch.no_grad()
def _answer_batch(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    prompts: Sequence[Dialogue],
    max_new_tokens: int,
) -> list[Answer | ValueError]:
    features: Any = processor.prompt(prompts).to(model.device)
    length: int = features["input_ids"].shape[1]
    text_config: Any = model.config.text_config
    room = text_config.max_position_embeddings - length
    if room < max_new_tokens and len(prompts) > 1:  # the longest must not cut the others' answers
        return [answer for prompt in prompts for answer in _answer_batch(model, processor, [prompt], max_new_tokens)]
    if room < 1:
        return [_no_room(length)]
    out: Tensor = model.eval().generate(
        **features,
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        eos_token_id=processor.end_token_ids[-1],
        pad_token_id=filler_token_id(processor.tokenizer),
    )
    return [_answer(processor, ids) for ids in out[:, length:].tolist()]


def _answer(processor: VisualChatProcessor, ids: list[int]) -> Answer:
    """An answer from its tokens and the padding behind its end."""
    end = processor.end_token_ids[-1]
    ended: Ended = "stop" if end in ids else "length"
    said = ids[: ids.index(end) + 1] if end in ids else ids
    return Answer(processor.tokenizer.decode(said, skip_special_tokens=True), ended, tuple(said))


def by_engine(engine: Engine, *, max_new_tokens: int, seed: int, sampling: Mapping[str, Any]) -> Answering:
    """Answers by an engine, which continues what it computed for earlier rounds of a conversation.

    Args:
        engine: With room for all prompts that are given at a time; no thread of its own need step.
        max_new_tokens: The most tokens of an answer; less where the model's positions end sooner.
        seed: Each answer is drawn with a seed made of it, the dialogue's id and the round.
        sampling: `temperature`, `top_p` and `stop` of `visualchat.engine.Request`.
    """

    def submitted(prompt: Dialogue) -> Any:
        name = f"{seed} {prompt.id} {len(prompt.turns)}"
        drawn = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:7])
        request = Request.of(engine.processor, prompt, seed=drawn, **sampling)
        text_config: Any = engine.model.config.text_config
        length = len(request.tokens.ids)
        room = text_config.max_position_embeddings - length
        if room < 1:
            return _no_room(length)
        return engine.submit(replace(request, max_new_tokens=min(max_new_tokens, room)))

    def answer(prompts: Sequence[Dialogue]) -> list[Answer | ValueError]:
        handles = [submitted(prompt) for prompt in prompts]
        found: list[Answer | ValueError] = []
        for handle in handles:
            if isinstance(handle, ValueError):
                found.append(handle)
                continue
            given = handle.result()
            found.append(Answer(given.text, "stop" if given.finish == "stop" else "length", tuple(given.ids)))
        return found

    return answer


def _no_room(length: int) -> ValueError:
    return ValueError(f"the prompt's {length} tokens leave the model no room for an answer")


def answer_rounds(
    dialogues: Sequence[Dialogue], rounds: Sequence[Sequence[int]], answer: Answering
) -> list[dict[int, Answer] | ValueError]:
    """Answers to some rounds of each dialogue, each given what stands before it: own answers where there are some.

    Args:
        dialogues: The answers of the rounds that are asked do not count.
        rounds: The indexes of those of each dialogue, ascending.
        answer: Answers prompts; the next rounds of all dialogues at a time.

    Returns:
        For each dialogue the answers by round, or why one of them could not be given.
    """
    turns = [[*dialogue.turns] for dialogue in dialogues]
    answers: list[dict[int, Answer]] = [{} for _ in dialogues]
    failed: dict[int, ValueError] = {}
    for step in range(max(map(len, rounds), default=0)):
        asked = [(index, of[step]) for index, of in enumerate(rounds) if step < len(of) and index not in failed]
        prompts = [open_at(replace(dialogues[i], turns=tuple(turns[i])), k) for i, k in asked]
        for (i, k), given in zip(asked, answer(prompts), strict=True):
            if isinstance(given, ValueError):
                failed[i] = ValueError(f"round {k + 1}: {given}")
            else:
                answers[i][k] = given
                turns[i][k] = replace(turns[i][k], answer=given.text)
    return [failed.get(index, of) for index, of in enumerate(answers)]


def open_at(dialogue: Dialogue, index: int) -> Dialogue:
    """The dialogue up to a round, which waits for its answer."""
    return replace(dialogue, turns=(*dialogue.turns[:index], replace(dialogue.turns[index], answer=None)))
