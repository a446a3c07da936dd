"""Answer loss, token accuracy and exact match of greedy answers, in one forward pass.

Given the true history, greedy decoding reproduces an answer exactly if and only if the model's best next token is the
true one at every token of the answer, its end token included. So no token needs to be generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visualchat.data.progress import watched
from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import IGNORE_INDEX
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor


@dataclass(frozen=True)
class Outcome:
    """One answer of an evaluation.

    Attributes:
        kind: The question's kind.
        images: Images of the whole dialogue, whether the model saw them or not.
        correct: Whether the answer is exactly the true one.
        tokens: Of the true answer, its end included.
        right: How many of them are the model's best token after the true ones before.
        loss: Nats, the sum over the true tokens.
    """

    kind: str
    images: int
    correct: bool
    tokens: int
    right: int
    loss: float


def correct_answers(logits: Tensor, labels: Tensor) -> list[bool]:
    """For each answer of a batch, in reading order, whether every one of its tokens is the model's best.

    Args:
        logits: (answer tokens, V), as the model returns them with labels.
        labels: (B, S); answers are the unbroken runs of labelled tokens.
    """
    right = _right(logits, labels)
    sums = _by_answer(torch.stack((right, torch.ones_like(right))), labels)
    return (sums[0] == sums[1]).tolist()


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """(answer tokens,), 1 where the model's best token is the true one, else 0."""
    return (logits.argmax(-1) == labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]).double()


def _by_answer(values: Tensor, labels: Tensor) -> Tensor:
    """Sums of (n, answer tokens) over each answer, (n, answers)."""
    labelled = labels[:, 1:] != IGNORE_INDEX
    starts = labelled.clone()
    starts[:, 1:] &= ~labelled[:, :-1]
    answer = starts[labelled].cumsum(0) - 1  # the number of the answer that each labelled token belongs to
    return values.new_zeros(len(values), int(starts.sum())).index_add(1, answer, values)


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
    for batch in watched(batches, description, len(batches)):
        shown = [dialogue.without_images() for dialogue in batch] if blind else batch
        asked = [(turn.kind, _image_count(dialogue)) for dialogue in batch for turn in dialogue.turns]
        outcomes += [
            Outcome(kind, images, sums.exact, sums.tokens, sums.right, sums.loss)
            for (kind, images), sums in zip(asked, answer_sums(model, processor, shown), strict=True)
        ]
    return outcomes


class AnswerSums(NamedTuple):
    """What the model makes of a true answer, given the true ones before.

    Attributes:
        tokens: Of the answer, its end included.
        right: How many of them are the model's best token.
        loss: Nats, the sum over them.
    """

    tokens: int
    right: int
    loss: float

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives this answer."""
        return self.tokens == self.right


@torch.no_grad()
def answer_sums(
    model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, dialogues: Sequence[Dialogue]
) -> list[AnswerSums]:
    """Of each answer of a batch of dialogues, by one forward pass."""
    features = processor.batch(dialogues).to(model.device)
    out = model(**features)
    right = _right(out.logits, features["labels"])
    values = torch.stack((torch.ones_like(right), right, out.answer_losses.double()))
    sums = _by_answer(values, features["labels"]).T.tolist()
    return [AnswerSums(int(tokens), int(correct), loss) for tokens, correct, loss in sums]


def _image_count(dialogue: Dialogue) -> int:
    """Images of a dialogue, captions that stand for one included."""
    return sum(not isinstance(item, str) for turn in dialogue.turns for item in turn.content)


def summarise(outcomes: Sequence[Outcome], apart: Sequence[str] = ()) -> dict[str, float]:
    """The figures of a set of answers: over all of them but the kinds named in `apart`, by kind, by number of images.

    Returns:
        `answer_loss/all`, nats a token of the true answers; `token_accuracy/all`, the share of these tokens that are
        the model's best; and shares of exact answers, `exact_match/all`, `exact_match/<kind>` where questions have
        kinds, and `exact_match/images_<n>`.
    """
    counted = [outcome for outcome in outcomes if outcome.kind not in apart]
    groups: dict[str, list[bool]] = {"all": [outcome.correct for outcome in counted]}
    for outcome in outcomes:
        if outcome.kind:
            groups.setdefault(outcome.kind, []).append(outcome.correct)
    for outcome in counted:
        groups.setdefault(f"images_{outcome.images}", []).append(outcome.correct)
    metrics = {f"exact_match/{name}": sum(c) / len(c) for name, c in sorted(groups.items()) if c}
    if tokens := sum(outcome.tokens for outcome in counted):
        metrics["answer_loss/all"] = sum(outcome.loss for outcome in counted) / tokens
        metrics["token_accuracy/all"] = sum(outcome.right for outcome in counted) / tokens
    return metrics


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics with `prefix/` before each name."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
