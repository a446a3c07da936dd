"""Evaluations of whole sets of dialogues, and the model's own answers for the page of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import filler_token_id
from visualchat.evaluation.exact_match import evaluate, prefixed, summarise
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


@torch.no_grad()
def answer_turns(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    dialogues: Sequence[Dialogue],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[list[str]]:
    """The model's own greedy answer to each turn of each dialogue, given the true history."""
    prompts = [
        replace(dialogue, turns=(*dialogue.turns[:k], replace(dialogue.turns[k], answer=None)))
        for dialogue in dialogues
        for k in range(len(dialogue.turns))
    ]
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        features = processor.prompt(prompts[start : start + batch_size]).to(model.device)
        out = model.eval().generate(
            **features,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=processor.end_token_ids[-1],
            pad_token_id=filler_token_id(processor.tokenizer),
        )
        texts += processor.tokenizer.batch_decode(out[:, features["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = iter(texts)
    return [[next(answers) for _ in dialogue.turns] for dialogue in dialogues]
