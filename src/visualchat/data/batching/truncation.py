"""What does not fit: dialogues over the length limit are cut at a turn's border, bad rows are skipped, all is counted.

Stands between the sources' dialogues and the batch. Nothing is dropped silently: what happened to a dialogue is an
entry of `Trimmed`, and `TrimReport` adds them up over a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import Encoding

BadRows = Literal["error", "skip"]
"""What happens at a row that cannot be trained on: the run ends with its reason, or it is left out and counted."""


def bad_rows_policy(name: str) -> BadRows:
    """The policy of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in get_args(BadRows):
        raise ValueError(f"unknown policy bad_rows={name!r}, expected one of {', '.join(get_args(BadRows))}")
    return name  # type: ignore[return-value]


def turns_that_fit(dialogue: Dialogue, encoding: Encoding, max_length: int | None) -> int:
    """How many of the dialogue's turns, from the first, have at most `max_length` tokens together.

    k rounds are a prefix of k + 1, token for token, so a round ends where its answer does.

    Args:
        dialogue: With an answer to every turn.
        encoding: Of the whole dialogue.
        max_length: The limit; None for none.

    Raises:
        ValueError: Not even the first turn fits.
    """
    if max_length is None or len(encoding) <= max_length:
        return len(dialogue.turns)
    ends = [stop for _, stop in encoding.answer_spans]
    fit = sum(end <= max_length for end in ends)
    if not fit:
        raise ValueError(
            f"{dialogue.id}: the first turn alone has {ends[0]} tokens ({len(dialogue.turns[0].images)} images), "
            f"the limit is {max_length}"
        )
    return fit


@dataclass(frozen=True)
class Trimmed:
    """What was trimmed of one dialogue: its last turns, or all of it where it is bad.

    Attributes:
        turns: Turns cut.
        images: Images that went with them.
        reason: Why the whole dialogue is left out; empty where it is not.
        rows: Rows of the sources that are left out with it.
    """

    turns: int = 0
    images: int = 0
    reason: str = ""
    rows: int = 1


def trim(dialogue: Dialogue, encoding: Encoding, max_length: int | None) -> tuple[Dialogue, Encoding, Trimmed | None]:
    """The turns of `dialogue` that fit, their encoding, and what was cut, None for nothing.

    The images of a turn go with it. `encoding` is the dialogue's; `max_length` None means no limit.

    Raises:
        ValueError: Not even the first turn fits.
    """
    fit = turns_that_fit(dialogue, encoding, max_length)
    if fit == len(dialogue.turns):
        return dialogue, encoding, None
    shorter = replace(dialogue, turns=dialogue.turns[:fit])
    trimmed = Trimmed(len(dialogue.turns) - fit, len(dialogue.images) - len(shorter.images))
    return shorter, encoding.cut(fit), trimmed


@dataclass
class TrimReport:
    """What was trimmed of one data set so far; a dialogue counts once, however often it is met.

    Attributes:
        rows: What was trimmed, by the dialogue's index.
    """

    rows: dict[int, Trimmed] = field(default_factory=dict)

    def add(self, trimmed: Mapping[int, Trimmed]) -> None:
        """Count what a batch met; a bad row stays bad."""
        for index, one in trimmed.items():
            if index not in self.rows or one.reason:
                self.rows[index] = one

    @property
    def bad(self) -> dict[int, str]:
        """Reasons by the index of each dialogue left out."""
        return {index: one.reason for index, one in sorted(self.rows.items()) if one.reason}

    @property
    def cut(self) -> dict[int, Trimmed]:
        """What was cut, by the index of each dialogue cut short."""
        return {index: one for index, one in sorted(self.rows.items()) if not one.reason}

    def summary(self, examples: int = 3) -> str:
        """The counts in words, with the reasons of the first `examples` bad rows; empty if nothing was trimmed."""
        parts = []
        if cut := self.cut.values():
            turns, images = sum(one.turns for one in cut), sum(one.images for one in cut)
            parts.append(f"{len(cut)} dialogues cut at a turn's border ({turns} turns, {images} images)")
        if bad := self.bad:
            reasons = "; ".join(list(bad.values())[:examples])
            rows = sum(one.rows for one in self.rows.values() if one.reason)
            joined = f" with {rows} rows of their sources" if rows > len(bad) else ""
            parts.append(f"{len(bad)} bad rows left out{joined}: {reasons}{'; ...' if len(bad) > examples else ''}")
        return ", ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, in plain types."""
        return {"rows": {index: (one.turns, one.images, one.reason, one.rows) for index, one in self.rows.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.rows = {int(index): Trimmed(*one) for index, one in state["rows"].items()}
