"""Dialogues -> one training batch: read, checked, cut to the limit, encoded, padded or packed."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.data import Dataset

from visualchat.data.facts import Facts, batch_facts, source_names, source_of
from visualchat.data.limits import BadRows, Losses, cut
from visualchat.data.origin import place_of, rows_in
from visualchat.data.schedule import BatchSpec
from visualchat.data.sources.rows import printable
from visualchat.dialogue import Caption, Content, Dialogue, ImageInput, Turn
from visualchat.encoding import IGNORE_INDEX, Encoding
from visualchat.features import FeatureStore
from visualchat.images import decode_image


class BatchingProcessor(Protocol):
    """The part of `VisualChatProcessor` that batching needs."""

    def encode(self, dialogue: Dialogue) -> Encoding:
        """One dialogue as tokens."""

    def batch(
        self,
        dialogues: Sequence[Dialogue],
        *,
        max_length: int | None = None,
        rows: Sequence[int] | None = None,
        share_images: bool = False,
        features: FeatureStore | None = None,
    ) -> Any:
        """Several dialogues as one padded batch of tensors."""


@dataclass(frozen=True)
class Collator:
    """Turns a list of dialogues into the model's inputs.

    Attributes:
        processor: Encodes and pads.
        max_length: The most tokens a row may have; a longer one is an error.
        features: A store of vision features, in which pictures are looked up; None for none.
    """

    processor: BatchingProcessor
    max_length: int | None = None
    features: FeatureStore | None = None

    def __call__(self, dialogues: Sequence[Dialogue], rows: Sequence[int] | None = None) -> dict[str, Any]:
        """The batch; `rows` says how many of the dialogues share each row, None for one a row. An image is there once.

        Raises:
            ValueError: A dialogue lacks an answer or a row is too long, or an image cannot be read; it is named.
        """
        answered = [dialogue.require_answers() for dialogue in dialogues]
        shared = {"share_images": True, "features": self.features} if self.features else {"share_images": True}
        return dict(self.processor.batch(answered, max_length=self.max_length, rows=rows, **shared))

    def idle(self, packed: bool) -> dict[str, Any]:
        """A batch that trains nothing: a few tokens of text, none of them labelled."""
        batch = self([Dialogue((Turn(("-",), "-"),), id="idle", system="")], [1] if packed else None)
        batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
        return batch


class Batch:
    """The model's inputs by name, and beside them what they hold and what the rows lost on the way.

    No dict, though `dict(batch)` and `model(**batch)` work: where weights are not fp32, Lightning rebuilds every dict
    before anything else sees it, and what stands beside its items would be lost.
    """

    def __init__(
        self, features: Mapping[str, Any], losses: Mapping[int, Losses] | None = None, facts: Facts | None = None
    ) -> None:
        self.features = dict(features)
        self.losses = dict(losses or {})
        self.facts = facts

    def keys(self) -> KeysView[str]:
        """The names of the inputs."""
        return self.features.keys()

    def __getitem__(self, name: str) -> Any:
        return self.features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)


@dataclass(frozen=True)
class Measured:
    """A dialogue as it trains.

    Attributes:
        dialogue: Cut to the limit.
        length: Its tokens.
        losses: What was cut; None for nothing.
    """

    dialogue: Dialogue
    length: int
    losses: Losses | None


def measure(dialogue: Dialogue, processor: BatchingProcessor, max_length: int | None) -> Measured:
    """The dialogue cut to the limit, its tokens counted; no image is decoded.

    Raises:
        ValueError: A turn lacks its answer, or not even the first turn fits.
    """
    encoding = processor.encode(dialogue.require_answers())
    shorter, losses = cut(dialogue, encoding, max_length)
    length = len(encoding) if losses is None else encoding.answer_spans[len(shorter.turns) - 1][1]
    return Measured(shorter, length, losses)


class BatchMaker(Dataset[Batch]):
    """A map-style data set whose items are whole batches: `maker[spec]` reads and collates them, in any process.

    Args:
        dialogues: All dialogues.
        collate: Makes tensors of them, and knows the limit.
        bad_rows: What happens at a bad row: `error`, or `skip`, which makes the batch of what is left (an idle batch if
            nothing is).
        packed: Whether rows hold several dialogues.
    """

    def __init__(
        self, dialogues: Sequence[Dialogue], collate: Collator, bad_rows: BadRows = "error", packed: bool = False
    ) -> None:
        self.dialogues, self.collate, self.bad_rows, self.packed = dialogues, collate, bad_rows, packed
        self.sources = max(1, len(source_names(dialogues)))

    def __getitem__(self, spec: BatchSpec) -> Batch:
        """The batch.

        Raises:
            ValueError: A row is bad and the policy is `error`; the message says where and why.
        """
        losses: dict[int, Losses] = {}
        decoded: dict[ImageInput, Image.Image] = {}
        rows: list[list[tuple[Dialogue, int]]] = []
        for row in spec.rows:
            found = [(self._read(index, losses, decoded), source_of(self.dialogues, index)) for index in row]
            if kept := [(dialogue, source) for dialogue, source in found if dialogue is not None]:
                rows.append(kept)
        if rows:
            counts = [len(row) for row in rows] if self.packed else None
            features = self.collate([dialogue for row in rows for dialogue, _ in row], counts)
        else:
            features = self.collate.idle(self.packed)
        return Batch(features, losses, batch_facts(features, rows, self.sources))

    def _read(self, index: int, losses: dict[int, Losses], decoded: dict[ImageInput, Image.Image]) -> Dialogue | None:
        """Dialogue `index`, cut and with its images decoded; None if it is bad and the policy is to skip it."""
        try:
            found = measure(self.dialogues[index], self.collate.processor, self.collate.max_length)
            dialogue = with_pictures(found.dialogue, decoded)
        except ValueError as error:
            if self.bad_rows == "error":
                raise ValueError(placed(error, self.dialogues, index)) from error
            rows = max(1, len(rows_in(self.dialogues, index)))
            losses[index] = Losses(reason=placed(error, self.dialogues, index), rows=rows)
            return None
        if found.losses is not None:
            losses[index] = found.losses
        return dialogue


def placed(error: ValueError, dialogues: Sequence[Dialogue], index: int) -> str:
    """What is wrong with dialogue `index`, and where its rows lie."""
    return f"{error} ({place_of(dialogues, index)})" if rows_in(dialogues, index) else str(error)


def with_pictures(dialogue: Dialogue, decoded: dict[ImageInput, Image.Image]) -> Dialogue:
    """The dialogue with every image decoded, but for files and bytes that are in `decoded` already.

    Raises:
        ValueError: An image cannot be read; dialogue and image are named.
    """
    number, count = 0, len(dialogue.images)
    turns = []
    for turn in dialogue.turns:
        content: list[Content] = []
        for item in turn.content:
            if isinstance(item, str | Caption):
                content.append(item)
                continue
            number += 1
            if isinstance(item, Image.Image):
                content.append(_decoded(item, dialogue, number, count))
                continue
            if item not in decoded:
                decoded[item] = _decoded(item, dialogue, number, count)
            content.append(decoded[item])
        turns.append(replace(turn, content=tuple(content)))
    return replace(dialogue, turns=tuple(turns))


def _decoded(image: ImageInput, dialogue: Dialogue, number: int, count: int) -> Image.Image:
    try:
        return decode_image(image, "it")
    except ValueError as error:
        raise ValueError(f"{printable(dialogue.id)}, image {number} of {count}: {error}") from error
