"""Dialogues -> one training batch: read, checked, cut to the limit, encoded, padded or packed."""

from __future__ import annotations

from collections.abc import Container, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.data import Dataset

from visualchat.data.batching.sampler import BatchSpec
from visualchat.data.batching.stats import Facts, batch_facts, source_names, source_of
from visualchat.data.batching.truncation import BadRows, Losses, cut
from visualchat.data.blend.origin import place_of, rows_in
from visualchat.data.sources.rows import printable
from visualchat.dialogue import Caption, Content, Dialogue, Turn
from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding
from visualchat.images import ImageInput
from visualchat.images.decode import MAX_ROW_PIXELS, Picture, decode_image
from visualchat.images.feature_store import FeatureStore


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
        encodings: Sequence[Encoding] | None = None,
        pictures: Sequence[Picture] | None = None,
    ) -> Any:
        """Several dialogues as one padded batch of tensors."""

    def prepare(self, image: Image.Image, share_images: bool = True, stored: bool = False) -> Picture:
        """A decoded picture at the encoder's size."""


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

    def __call__(
        self, dialogues: Sequence[Dialogue], rows: Sequence[int] | None = None, read: Sequence[Read] | None = None
    ) -> dict[str, Any]:
        """The batch; `rows` says how many of the dialogues share each row, None for one a row. An image is there once.

        What is known of the dialogues, in `read`, is not done again.

        Raises:
            ValueError: A dialogue lacks an answer or a row is too long, or an image cannot be read; it is named.
        """
        known: dict[str, Any] = {"features": self.features} if self.features else {}
        if read is None:
            dialogues = [dialogue.require_answers() for dialogue in dialogues]
        else:
            known["encodings"] = [one.encoding for one in read]
            known["pictures"] = [picture for one in read for picture in one.pictures]
        return dict(self.processor.batch(dialogues, max_length=self.max_length, rows=rows, share_images=True, **known))

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
        encoding: Of it.
        losses: What was cut; None for nothing.
    """

    dialogue: Dialogue
    encoding: Encoding
    losses: Losses | None

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.encoding)


@dataclass(frozen=True)
class Read(Measured):
    """A dialogue as it trains, its images decoded and scaled.

    Attributes:
        pictures: In order.
    """

    pictures: tuple[Picture, ...]


def measure(dialogue: Dialogue, processor: BatchingProcessor, max_length: int | None) -> Measured:
    """The dialogue cut to the limit, its tokens counted; no image is decoded.

    Raises:
        ValueError: A turn lacks its answer, or not even the first turn fits.
    """
    encoding = processor.encode(dialogue.require_answers())
    shorter, losses = cut(dialogue, encoding, max_length)
    return Measured(shorter, encoding if losses is None else encoding.cut(len(shorter.turns)), losses)


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
        known: dict[ImageInput, Picture] = {}
        rows: list[list[tuple[Read, int]]] = []
        for row in spec.rows:
            found = [(self._read(index, losses, known), source_of(self.dialogues, index)) for index in row]
            if kept := [(read, source) for read, source in found if read is not None]:
                rows.append(kept)
        if rows:
            counts = [len(row) for row in rows] if self.packed else None
            together = [read for row in rows for read, _ in row]
            features = self.collate([read.dialogue for read in together], counts, together)
        else:
            features = self.collate.idle(self.packed)
        told = [[(read.dialogue, source) for read, source in row] for row in rows]
        return Batch(features, losses, batch_facts(features, told, self.sources))

    def _read(self, index: int, losses: dict[int, Losses], known: dict[ImageInput, Picture]) -> Read | None:
        """Dialogue `index`, cut and with its images prepared; None if it is bad and the policy is to skip it."""
        try:
            found = measure(self.dialogues[index], self.collate.processor, self.collate.max_length)
            pictures = tuple(self._pictures(found.dialogue, known))
        except ValueError as error:
            if self.bad_rows == "error":
                raise ValueError(placed(error, self.dialogues, index)) from error
            rows = max(1, len(rows_in(self.dialogues, index)))
            losses[index] = Losses(reason=placed(error, self.dialogues, index), rows=rows)
            return None
        if found.losses is not None:
            losses[index] = found.losses
        return Read(found.dialogue, found.encoding, found.losses, pictures)

    def _pictures(self, dialogue: Dialogue, known: dict[ImageInput, Picture]) -> Iterator[Picture]:
        """The dialogue's pictures: each is scaled before the next is decoded, equal files once."""
        processor, stored = self.collate.processor, self.collate.features is not None
        for item, image in decoded_images(dialogue, known):
            if image is None:
                yield known[item]
                continue
            picture = processor.prepare(image, stored=stored)
            if not isinstance(item, Image.Image):
                known[item] = picture
            yield picture


def placed(error: ValueError, dialogues: Sequence[Dialogue], index: int) -> str:
    """What is wrong with dialogue `index`, and where its rows lie."""
    return f"{error} ({place_of(dialogues, index)})" if rows_in(dialogues, index) else str(error)


def with_pictures(dialogue: Dialogue, decoded: dict[ImageInput, Image.Image]) -> Dialogue:
    """The dialogue with every image decoded, but for files and bytes that are in `decoded` already.

    Raises:
        ValueError: An image cannot be read; dialogue and image are named.
    """
    pictures: list[Image.Image] = []
    for item, image in decoded_images(dialogue, decoded):
        if image is not None and not isinstance(item, Image.Image):
            decoded[item] = image
        pictures.append(decoded[item] if image is None else image)
    waiting = iter(pictures)
    turns = []
    for turn in dialogue.turns:
        content: list[Content] = [item if isinstance(item, str | Caption) else next(waiting) for item in turn.content]
        turns.append(replace(turn, content=tuple(content)))
    return replace(dialogue, turns=tuple(turns))


def check_pictures(dialogue: Dialogue) -> None:
    """Decode every image of a dialogue, one after the other.

    Raises:
        ValueError: An image cannot be read, or all together are too large; dialogue and image are named.
    """
    for _ in decoded_images(dialogue, ()):
        pass


def decoded_images(dialogue: Dialogue, known: Container[ImageInput]) -> Iterator[tuple[ImageInput, Image.Image | None]]:
    """Each image of a dialogue and its picture, decoded when it is asked for; None for those that are known.

    Raises:
        ValueError: An image cannot be read, or all together are too large; dialogue and image are named.
    """
    images, pixels = dialogue.images, 0
    for number, item in enumerate(images, start=1):
        if not isinstance(item, Image.Image) and item in known:
            yield item, None
            continue
        try:
            image = decode_image(item, "it")
            pixels += image.width * image.height
            if pixels > MAX_ROW_PIXELS:
                raise ValueError(f"the images up to it have {pixels} pixels, at most {MAX_ROW_PIXELS} are allowed")
        except ValueError as error:
            raise ValueError(f"{printable(dialogue.id)}, image {number} of {len(images)}: {error}") from error
        yield item, image
