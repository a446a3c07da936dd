"""One corpus of a person's own, split in two: by a share of its rows, or with a validation file of the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualchat.data.blend.compose import Join
from visualchat.data.blend.mixture import Blend, Mixture
from visualchat.data.blend.origin import place_of
from visualchat.data.blend.split import Split, SplitBy
from visualchat.data.sources import Source
from visualchat.data.sources.root import names
from visualchat.data.sources.rows import Entries

NAME = "own"
"""What reports and metrics call the corpus."""


class OwnData:
    """Training and validation dialogues of one source.

    Args:
        source: The corpus.
        validation: A share of its rows, which are held out by a hash of their identity; or the name of a file of the
            same form (or a list of names), all of which validates.
        split_by: `row`, or `image` where dialogues that share an image must be in one split.
        seed: Of the split by a share.

    Raises:
        ValueError: There is no source, or a file is to train and to validate; on first use also where the rows cannot
            be read or a split would be empty.
    """

    def __init__(
        self,
        source: Source | None,
        validation: float | str | Sequence[str] = 0.1,
        split_by: SplitBy = "row",
        seed: int = 0,
    ) -> None:
        if source is None:
            raise ValueError(
                "data=own needs a source: say data/source=..., such as data/source=messages; docs/own-data.md has them"
            )
        self.sources = {NAME: source}
        self._split: Blend | None = None
        if isinstance(validation, int | float):
            self._split = Blend(self.sources, {NAME: Join(NAME)}, validation, split_by, seed)
        else:
            self.sources["validation"] = _on_files(source, validation)

    @cached_property
    def train(self) -> Mixture:
        """The dialogues that train.

        Raises:
            ValueError: There is none.
        """
        return self._needed("train", Mixture({NAME: self.sources[NAME]}) if self._split is None else self._split.train)

    @cached_property
    def validation(self) -> Mixture:
        """The dialogues that validate.

        Raises:
            ValueError: There is none.
        """
        held_out = self.sources.get("validation")
        dialogues = self._split.validation if self._split else Mixture({NAME: held_out} if held_out is not None else {})
        return self._needed("validation", dialogues)

    @cached_property
    def trained_too(self) -> list[int]:
        """The validation dialogues whose row is, letter by letter and with the same images, one that trains."""
        contents = [_contents(self.sources[NAME])]
        if self._split is None:
            contents.append(_contents(self.sources["validation"]))
        else:
            splits = self._split.splits[NAME]
            contents = [contents[0][splits["train"]], contents[0][splits["validation"]]] if len(contents[0]) else []
        return np.flatnonzero(np.isin(contents[-1], contents[0])).tolist() if contents else []

    def leak(self) -> str:
        """A sentence on validation dialogues that train, too; empty if there are none."""
        if not self.trained_too:
            return ""
        first = place_of(self.validation, self.trained_too[0])
        return (
            f"{len(self.trained_too)} of {len(self.validation)} validation dialogues also train, the first from "
            f"{first}: figures of them say nothing about new data; leave each row in one place only"
        )

    def notes(self) -> list[str]:
        """What is odd about rows that are used, and how many they are."""
        reports = [source.report() for source in self.sources.values()]
        return [f"{report.source}: {count} {note}" for report in reports for note, count in report.notes.items()]

    def _needed(self, split: Split, dialogues: Mixture) -> Mixture:
        if len(dialogues):
            return dialogues
        how = "the file of data.validation" if self._split is None else f"data.validation={self._split.share:g}"
        raise ValueError(
            f"{split} holds no dialogue: the source has {len(self.sources[NAME])}, split by {how}; one at least must "
            "train, one validate. Give a share between 0 and 1, or name a file of other dialogues: data.validation=FILE"
        )


def _contents(source: Source) -> NDArray[np.uint64]:
    """A hash of each dialogue's row; empty where dialogues are of several rows."""
    entries = source.entries
    return np.array(entries.contents if isinstance(entries, Entries) else (), np.uint64)


def _on_files(source: Source, validation: str | Sequence[str]) -> Source:
    """The same reader on other files, or on another folder of images.

    Raises:
        ValueError: The reader takes neither, or what is named trains too.
    """
    reader: Any = source
    field = next((field for field in ("files", "folder") if hasattr(reader, field)), None)
    if field is None:
        raise ValueError(f"data.validation={validation}: {source.name} takes no files; give a share, such as 0.1")
    if both := sorted(set(names(validation)) & set(names(getattr(reader, field)))):
        raise ValueError(f"data.validation={validation}: {', '.join(both)} trains too; name other files, or a share")
    source_on_files: Source = replace(reader, **{field: validation if field == "folder" else names(validation)})
    return source_on_files
