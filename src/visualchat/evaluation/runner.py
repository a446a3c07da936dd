"""Evaluations of whole sets of dialogues, and the model's own answers for the page of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from visualchat.dialogue import Dialogue
from visualchat.evaluation.exact_match import evaluate, prefixed, summarise
from visualchat.generation.answering import batched, open_at
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor


def evaluate_parts(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    parts: Mapping[str, Sequence[Dialogue]],
    *,
    apart: Sequence[str] = (),
    blind: bool = False,
    batch_size: int = 32,
    description: str = "evaluating",
) -> dict[str, float]:
    """The figures of `summarise` over all parts together; of several parts also `<part>/.../all` for each.

    Args:
        model: Answers.
        processor: Of the same model.
        parts: Dialogues by the name of their part.
        apart: Kinds of question left out of every `all`.
        blind: Whether to leave the images out.
        batch_size: Dialogues at a time.
        description: Stands beside the progress bar.

    Raises:
        ValueError: A part holds no answer that counts.
    """
    outcomes = {
        name: evaluate(model, processor, part, blind=blind, batch_size=batch_size, description=f"{description}, {name}")
        for name, part in parts.items()
    }
    for name, part in outcomes.items():
        if all(outcome.kind in apart for outcome in part):
            raise ValueError(f"part {name!r} of the evaluation has no answer of a kind that counts (apart: {[*apart]})")
    metrics = summarise([o for part in outcomes.values() for o in part], apart)
    for name, part in outcomes.items() if len(outcomes) > 1 else ():
        figures = summarise(part, apart)
        metrics |= prefixed(name, {key: value for key, value in figures.items() if key.endswith("/all")})
    return metrics


def answer_turns(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    dialogues: Sequence[Dialogue],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[list[str]]:
    """The model's own greedy answer to each turn of each dialogue, given the true history."""
    prompts = [open_at(dialogue, k) for dialogue in dialogues for k in range(len(dialogue.turns))]
    answers = batched(model, processor, max_new_tokens=max_new_tokens, batch_size=batch_size)(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        if isinstance(answer, ValueError):
            raise ValueError(f"{prompt.id}, round {len(prompt.turns)}: {answer}") from answer
    texts = iter([answer.text for answer in answers if not isinstance(answer, ValueError)])
    return [[next(texts) for _ in dialogue.turns] for dialogue in dialogues]
