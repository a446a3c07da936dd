"""Exact match of greedy answers, in one forward pass.

Given the true history, greedy decoding reproduces an answer exactly if and only if the model's best next token is the
true one at every token of the answer, its end token included. So no token needs to be generated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from visualchat.dialogue import Dialogue
from visualchat.encoding import IGNORE_INDEX
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor


@dataclass(frozen=True)
class Outcome:
    """One answer of an evaluation.

    Attributes:
        kind: The question's kind.
        images: Images of the whole dialogue, whether the model saw them or not.
        correct: Whether the answer is exactly the true one.
    """

    kind: str
    images: int
    correct: bool


def correct_answers(logits: Tensor, labels: Tensor) -> list[bool]:
    """For each answer of a batch, in reading order, whether every one of its tokens is the model's best.

    Args:
        logits: (answer tokens, V), as the model returns them with labels.
        labels: (B, S); answers are the unbroken runs of labelled tokens.
    """
    labelled = labels[:, 1:] != IGNORE_INDEX
    starts = labelled.clone()
    starts[:, 1:] &= ~labelled[:, :-1]
    answer = starts[labelled].cumsum(0) - 1  # the number of the answer that each labelled token belongs to
    wrong = logits.argmax(-1) != labels[:, 1:][labelled]
    if not len(answer):
        return []
    mistakes = torch.zeros(int(answer[-1]) + 1, dtype=torch.long, device=labels.device)
    return (mistakes.index_add(0, answer, wrong.long()) == 0).tolist()


@torch.no_grad()  # not inference_mode: its tensors would cost the layers their shared attention plan
def evaluate(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    dialogues: Iterable[Dialogue],
    *,
    blind: bool = False,
    batch_size: int = 32,
    description: str = "evaluating",
) -> list[Outcome]:
    """The outcome of every answer of the dialogues, each given the true history.

    Args:
        model: Answers.
        processor: Of the same model.
        dialogues: With true answers.
        blind: Whether to leave the images out: what can be guessed from the questions alone.
        batch_size: Dialogues at a time.
        description: Stands beside the progress bar.

    Raises:
        ValueError: A dialogue lacks an answer.
    """
    model.eval()
    outcomes: list[Outcome] = []
    waiting = [dialogue.require_answers() for dialogue in dialogues]
    batches = [waiting[start : start + batch_size] for start in range(0, len(waiting), batch_size)]
    for batch in track(batches, description, transient=True, disable=not sys.stdout.isatty()):
        shown = [dialogue.without_images() for dialogue in batch] if blind else batch
        features = processor.batch(shown).to(model.device)
        correct = correct_answers(model(**features).logits, features["labels"])
        asked = [(turn.kind, _image_count(dialogue)) for dialogue in batch for turn in dialogue.turns]
        outcomes += [Outcome(kind, images, c) for (kind, images), c in zip(asked, correct, strict=True)]
    return outcomes


def _image_count(dialogue: Dialogue) -> int:
    """Images of a dialogue, captions that stand for one included."""
    return sum(not isinstance(item, str) for turn in dialogue.turns for item in turn.content)


def summarise(outcomes: Sequence[Outcome], apart: Sequence[str] = ()) -> dict[str, float]:
    """Shares of exact answers: `all` without the kinds named in `apart`, each kind, and each number of images.

    Returns:
        Keys `exact_match/all`, `exact_match/<kind>`, `exact_match/images_<n>` (which leaves out `apart` too), in 0..1.
    """
    groups: dict[str, list[bool]] = {"all": []}
    for outcome in outcomes:
        groups.setdefault(outcome.kind or "answer", []).append(outcome.correct)
        if outcome.kind not in apart:
            groups["all"].append(outcome.correct)
            groups.setdefault(f"images_{outcome.images}", []).append(outcome.correct)
    return {f"exact_match/{name}": sum(c) / len(c) for name, c in sorted(groups.items()) if c}


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics with `prefix/` before each name."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
