"""Dialogues -> one training batch: encoded once and cut to the limit, images decoded once, padded or packed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from visualchat.data.batching.images import decoded_images
from visualchat.data.batching.sampler import BatchSpec
from visualchat.data.batching.stats import BatchStats, batch_stats
from visualchat.data.batching.truncation import BadRows, Trimmed, trim
from visualchat.data.blend.mixture import Mixture
from visualchat.data.blend.origin import place_of, rows_in
from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding
from visualchat.images import ImageInput
from visualchat.images.decode import ScaledImage
from visualchat.images.feature_store import FeatureStore, image_key


class BatchingProcessor(Protocol):
    """The part of `VisualChatProcessor` that batching needs: each step of the way, none of them taken twice."""

    def encode(self, dialogue: Dialogue) -> Encoding:
        """One dialogue as tokens."""

    def pad(self, rows: Sequence[Sequence[Encoding]], *, packed: bool) -> dict[str, Tensor]:
        """Rows of one encoding each, or of several with `packed`, as tensors (B, S)."""

    def scale(self, image: Image.Image) -> Tensor:
        """A decoded image at the encoder's size."""

    def normalise(self, images: Sequence[Tensor]) -> Tensor:
        """`pixel_values` of scaled images."""


@dataclass(frozen=True)
class Example:
    """A dialogue as it trains.

    Attributes:
        dialogue: Cut to the limit.
        encoding: Of it.
        trimmed: What was cut; None for nothing.
        images: In order; none before they are decoded.
    """

    dialogue: Dialogue
    encoding: Encoding
    trimmed: Trimmed | None
    images: tuple[ScaledImage, ...] = ()


def encode_example(dialogue: Dialogue, processor: BatchingProcessor, max_length: int | None) -> Example:
    """The dialogue encoded and cut to the limit; no image is decoded.

    Raises:
        ValueError: A turn lacks its answer, or not even the first turn fits.
    """
    return Example(*trim(dialogue, processor.encode(dialogue.require_answers()), max_length))


@dataclass(frozen=True)
class Collator:
    """Turns dialogues into examples and examples into the model's inputs.

    Attributes:
        processor: Encodes and pads.
        max_length: The most tokens a row may have.
        store: Vision features by image; None for none. Images that are in it are not encoded again.
    """

    processor: BatchingProcessor
    max_length: int | None = None
    store: FeatureStore | None = None

    def read(self, dialogue: Dialogue, known: dict[ImageInput, ScaledImage]) -> Example:
        """The dialogue encoded and cut, its images decoded and scaled; files and bytes that are `known` are not again.

        Raises:
            ValueError: A turn lacks its answer, not even the first turn fits, or an image cannot be read.
        """
        example = encode_example(dialogue, self.processor, self.max_length)
        return replace(example, images=tuple(self._scaled_images(example.dialogue, known)))

    def _scaled_images(self, dialogue: Dialogue, known: dict[ImageInput, ScaledImage]) -> Iterator[ScaledImage]:
        """The dialogue's images: each is scaled before the next is decoded, because decoded ones may be huge."""
        for item, decoded in decoded_images(dialogue, known):
            if decoded is None:
                yield known[item]
                continue
            pixels = self.processor.scale(decoded)
            image = ScaledImage(pixels, _pixels_key(pixels) if self.store is None else image_key(decoded))
            if not isinstance(item, Image.Image):
                known[item] = image
            yield image

    def __call__(self, rows: Sequence[Sequence[Example]], *, packed: bool = False) -> dict[str, Any]:
        """The model's inputs.

        Args:
            rows: The examples of each row, at least one row; one example each unless `packed`.
            packed: Whether rows hold several dialogues.

        Returns:
            What `VisualChatProcessor.pad` gives, and, where there is an image, `pixel_values` (N, 3, height, width):
            equal images stand there once, and `image_index` (slots,) then tells the entry that fills each
            slot. With a store `pixel_values` hold the images that it lacks, `vision_features` (N, P, D) what it
            knows, 0 at the others, `feature_keys` a key for each of the others and "" for those that are known, and
            `features_damaged` says how many files were damaged.

        Raises:
            ValueError: A row is too long; its dialogues are named.
        """
        self._check_lengths(rows)
        inputs: dict[str, Any] = self.processor.pad([[one.encoding for one in row] for row in rows], packed=packed)
        return inputs | self._inputs_of([image for row in rows for one in row for image in one.images])

    def idle(self, packed: bool) -> dict[str, Any]:
        """A batch that trains nothing: a few tokens of text, none of them labelled."""
        dialogue = Dialogue((Turn(("-",), "-"),), id="idle", system="")
        inputs = self([[Example(dialogue, self.processor.encode(dialogue), None)]], packed=packed)
        inputs["labels"] = torch.full_like(inputs["labels"], IGNORE_INDEX)
        return inputs

    def _inputs_of(self, images: Sequence[ScaledImage]) -> dict[str, Any]:
        """The inputs that come of the images, in order."""
        if not images:
            return {}
        inputs: dict[str, Any] = {}
        distinct = {image.key: image for image in images}
        if len(distinct) < len(images):
            index = {key: n for n, key in enumerate(distinct)}
            inputs["image_index"] = torch.tensor([index[image.key] for image in images])
        to_encode = [*distinct.values()]
        if self.store is not None:
            known = self.store.lookup([*distinct])
            to_encode = [image for image, key in zip(to_encode, known.keys, strict=True) if key]
            inputs |= {"feature_keys": known.keys, "features_damaged": known.damaged}
            if known.features is not None:
                inputs["vision_features"] = known.features
        if to_encode:
            inputs["pixel_values"] = self.processor.normalise([image.pixels for image in to_encode])
        return inputs

    def _check_lengths(self, rows: Sequence[Sequence[Example]]) -> None:
        """Raise the error of `__call__` if a row is longer than the limit, as where files changed after packing."""
        for row in rows:
            length = sum(len(one.encoding) for one in row)
            if self.max_length is not None and length > self.max_length:
                turns = sum(len(one.dialogue.turns) for one in row)
                images = sum(len(one.dialogue.images) for one in row)
                raise ValueError(
                    f"{', '.join(one.dialogue.id for one in row)}: {length} tokens ({turns} turns, {images} images) "
                    f"exceed the limit of {self.max_length}"
                )


def _pixels_key(pixels: Tensor) -> str:
    """A name for a scaled image: equal where every pixel is."""
    as_stored = pixels.permute(1, 2, 0).contiguous().numpy()  # as PIL has them: no copy
    return hashlib.sha256(as_stored.data).hexdigest()


class Batch:
    """The model's inputs by name, and beside them what they hold and what was trimmed on the way.

    Not a dict, though `dict(batch)` and `model(**batch)` work: where weights are not fp32, Lightning rebuilds every
    dict before anything else sees it, and what stands beside its items would be lost.
    """

    def __init__(
        self, inputs: Mapping[str, Any], trimmed: Mapping[int, Trimmed] | None = None, stats: BatchStats | None = None
    ) -> None:
        self.inputs = dict(inputs)
        self.trimmed = dict(trimmed or {})
        self.stats = stats

    def keys(self) -> KeysView[str]:
        """The names of the inputs."""
        return self.inputs.keys()

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)


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
        self.dialogues = Mixture.of(dialogues)
        self.collate, self.bad_rows, self.packed = collate, bad_rows, packed

    def __getitem__(self, spec: BatchSpec) -> Batch:
        """The batch.

        Raises:
            ValueError: A row is bad and the policy is `error`; the message says where and why.
        """
        trimmed: dict[int, Trimmed] = {}
        known: dict[ImageInput, ScaledImage] = {}
        rows: list[list[tuple[Example, int]]] = []
        for row in spec.rows:
            read = [(self._read(index, trimmed, known), self.dialogues.source_of(index)) for index in row]
            if good := [(example, source) for example, source in read if example is not None]:
                rows.append(good)
        examples = [[example for example, _ in row] for row in rows]
        inputs = self.collate(examples, packed=self.packed) if rows else self.collate.idle(self.packed)
        shown = [[(example.dialogue, source) for example, source in row] for row in rows]
        return Batch(inputs, trimmed, batch_stats(inputs, shown, len(self.dialogues.parts)))

    def _read(self, index: int, trimmed: dict[int, Trimmed], known: dict[ImageInput, ScaledImage]) -> Example | None:
        """Dialogue `index`, cut and with its images prepared; None if it is bad and the policy is to skip it."""
        try:
            example = self.collate.read(self.dialogues[index], known)
        except ValueError as error:
            if self.bad_rows == "error":
                raise ValueError(placed(error, self.dialogues, index)) from error
            trimmed[index] = left_out(error, self.dialogues, index)
            return None
        if example.trimmed is not None:
            trimmed[index] = example.trimmed
        return example


def left_out(error: ValueError, dialogues: Sequence[Dialogue], index: int) -> Trimmed:
    """Dialogue `index` lost as a whole, with all rows of sources that it is made of."""
    return Trimmed(reason=placed(error, dialogues, index), rows=max(1, len(rows_in(dialogues, index))))


def placed(error: ValueError, dialogues: Sequence[Dialogue], index: int) -> str:
    """What is wrong with dialogue `index`, and where its rows lie."""
    return f"{error} ({place_of(dialogues, index)})" if rows_in(dialogues, index) else str(error)
