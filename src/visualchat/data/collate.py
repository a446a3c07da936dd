"""Dialogues -> one training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from visualchat.dialogue import Dialogue


class BatchingProcessor(Protocol):
    """The part of `VisualChatProcessor` that batching needs."""

    def batch(self, dialogues: Sequence[Dialogue], *, max_length: int | None) -> Any:
        """Several dialogues as one padded batch of tensors."""


@dataclass(frozen=True)
class Collator:
    """Turns a list of dialogues into the model's inputs.

    Attributes:
        processor: Encodes and pads.
        max_length: The most tokens a dialogue may have; a longer one is an error.
    """

    processor: BatchingProcessor
    max_length: int | None = None

    def __call__(self, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
        """The batch.

        Raises:
            ValueError: A dialogue lacks an answer or is too long, or an image cannot be read; the dialogue is named.
        """
        answered = [dialogue.require_answers() for dialogue in dialogues]
        return dict(self.processor.batch(answered, max_length=self.max_length))
