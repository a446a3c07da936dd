"""Training or validation: decided for each source row by its identity alone, before anything is joined or blended.

So a row is in the same split in every run, on every machine, in every blend that draws from it, and adding rows moves
no other row.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

from visualchat.data.sources.disjoint_sets import DisjointSets
from visualchat.data.sources.rows import Entry, encoded, groups

Split = Literal["train", "validation"]
SplitBy = Literal["row", "image"]
_LARGEST_SHARE = 0.25  # of all dialogues that images may chain together


def split_of(identity: str, validation: float = 0.1, salt: str = "") -> Split:
    """The split that a row is in.

    Args:
        identity: What stays the same about it in every run.
        validation: The share of identities that validate.
        salt: Another one gives another split.

    Raises:
        ValueError: The share is below 0 or above 1.
    """
    return "validation" if _validate([encoded(identity)], validation, salt)[0] else "train"


def _validate(identities: Iterable[bytes], validation: float, salt: str) -> list[bool]:
    """Whether each row validates: the first 8 bytes of a hash, as a number below 2**64, lie within the share."""
    if not 0 <= validation <= 1:
        raise ValueError(f"the share of validation must lie between 0 and 1, found {validation}")
    border, sha256 = math.ceil(validation * 2**64).to_bytes(9, "big")[1:], hashlib.sha256
    if validation * 2**64 > 2**64 - 1:
        return [True for _ in identities]
    salted = sha256(encoded(salt) + b"\0")
    chosen = []
    for identity in identities:
        digest = salted.copy()
        digest.update(identity)
        chosen.append(digest.digest()[:8] < border)
    return chosen


def _draw(identity: str, salt: str) -> int:
    """A number below 2^64 that belongs to the identity."""
    digest = hashlib.sha256(f"{salt}\0{identity}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def split_sources(
    sources: Mapping[str, Sequence[Entry]], validation: float = 0.1, by: SplitBy = "row", salt: str = ""
) -> dict[str, dict[Split, list[int]]]:
    """The indexes of each source's dialogues in each split.

    A share between 0 and 1 leaves no split empty where there are two identities: of a few rows, of which the hash would
    hold out none, the one that comes nearest is held out.

    Args:
        sources: The entries of each source.
        validation: The share that validates.
        by: `row`, or `image`: then dialogues that share an image, in whatever sources, are in one split.
        salt: Another one gives another split.

    Raises:
        ValueError: `by` is unknown, or images chain so many dialogues together that they cannot be split by image.
    """
    if by not in get_args(SplitBy):
        raise ValueError(f"dialogues are split by {' or '.join(get_args(SplitBy))}, not by {by!r}")
    names = image_groups(sources) if by == "image" else None

    def identity(entry: Entry) -> str:
        return entry.group if names is None or not entry.images else names[entry.images[0]]

    indexes: dict[str, dict[Split, list[int]]] = {}
    for source, entries in sources.items():
        if names is None:
            validate = _validate(groups(entries), validation, salt)
        else:
            validate = _validate((encoded(identity(entry)) for entry in entries), validation, salt)
        indexes[source] = {
            "train": [index for index, chosen in enumerate(validate) if not chosen],
            "validation": [index for index, chosen in enumerate(validate) if chosen],
        }
    if 0 < validation < 1:
        empty = [name for name in get_args(Split) if not any(splits[name] for splits in indexes.values())]
        identities = {identity(entry) for entry in _all(sources)} if len(empty) == 1 else set()
        if len(identities) > 1:
            nearest = {"validation": min, "train": max}[empty[0]]
            _move(nearest(identities, key=lambda name: (_draw(name, salt), name)), empty[0], sources, indexes, identity)
    return indexes


def _move(
    chosen: str,
    to: Split,
    sources: Mapping[str, Sequence[Entry]],
    indexes: Mapping[str, dict[Split, list[int]]],
    identity: Callable[[Entry], str],
) -> None:
    """Bring the dialogues of one identity to a split that has none."""
    other: Split = "train" if to == "validation" else "validation"
    for source, splits in indexes.items():
        splits[to] = [index for index in splits[other] if identity(sources[source][index]) == chosen]
        splits[other] = [index for index in splits[other] if identity(sources[source][index]) != chosen]


def image_groups(sources: Mapping[str, Sequence[Entry]]) -> dict[str, str]:
    """For each image the smallest identity among all that dialogues connect it with.

    Raises:
        ValueError: One group holds so many dialogues that a split by it would be none.
    """
    connected = DisjointSets()
    for entry in _all(sources):
        for image in entry.images:
            connected.join(entry.images[0], image)
    sizes = Counter(connected.smallest(entry.images[0]) for entry in _all(sources) if entry.images)
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    if largest > max(1, _LARGEST_SHARE * total) and len(sizes) > 1:
        raise ValueError(
            f"{largest} of {total} dialogues are connected by shared images; a corpus of this kind (such as "
            "pairs of COCO images) cannot be split by image: use split_by=row"
        )
    return {image: connected.smallest(image) for image in connected.members()}


def _all(sources: Mapping[str, Sequence[Entry]]) -> Iterable[Entry]:
    return (entry for entries in sources.values() for entry in entries)
