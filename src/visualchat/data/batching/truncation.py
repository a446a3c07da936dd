"""What does not fit: dialogues over the length limit are cut at a turn's border, bad rows are skipped, all is counted.

Stands between the sources' dialogues and the batch. Nothing is dropped in silence: what happened to a dialogue is an
entry of `Losses`, and `LoadReport` adds them up over a run.
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
    kept = sum(end <= max_length for end in ends)
    if not kept:
        raise ValueError(
            f"{dialogue.id}: the first turn alone has {ends[0]} tokens ({len(dialogue.turns[0].images)} images), "
            f"the limit is {max_length}"
        )
    return kept


@dataclass(frozen=True)
class Losses:
    """What one dialogue lost: either it is bad, or its last turns were cut.

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


def cut(dialogue: Dialogue, encoding: Encoding, max_length: int | None) -> tuple[Dialogue, Losses | None]:
    """The turns of `dialogue` that fit, and what was lost, None for nothing.

    The images of a turn go with it. `encoding` is the dialogue's; `max_length` None means no limit.

    Raises:
        ValueError: Not even the first turn fits.
    """
    kept = turns_that_fit(dialogue, encoding, max_length)
    if kept == len(dialogue.turns):
        return dialogue, None
    shorter = replace(dialogue, turns=dialogue.turns[:kept])
    return shorter, Losses(len(dialogue.turns) - kept, len(dialogue.images) - len(shorter.images))


@dataclass
class LoadReport:
    """What the rows of one data set lost so far; a row counts once, however often it is met.

    Attributes:
        rows: Losses by the row's number.
    """

    rows: dict[int, Losses] = field(default_factory=dict)

    def add(self, losses: Mapping[int, Losses]) -> None:
        """Count what a batch met; a bad row stays bad."""
        for row, loss in losses.items():
            if row not in self.rows or loss.reason:
                self.rows[row] = loss

    @property
    def bad(self) -> dict[int, str]:
        """Reasons by the number of each row left out."""
        return {row: loss.reason for row, loss in sorted(self.rows.items()) if loss.reason}

    @property
    def cut(self) -> dict[int, Losses]:
        """What was lost by the number of each row cut short."""
        return {row: loss for row, loss in sorted(self.rows.items()) if not loss.reason}

    def summary(self, examples: int = 3) -> str:
        """The counts in words, with the reasons of the first `examples` bad rows; empty if nothing was lost."""
        parts = []
        if cut := self.cut.values():
            turns, images = sum(loss.turns for loss in cut), sum(loss.images for loss in cut)
            parts.append(f"{len(cut)} dialogues cut at a turn's border ({turns} turns, {images} images)")
        if bad := self.bad:
            reasons = "; ".join(list(bad.values())[:examples])
            rows = sum(loss.rows for loss in self.rows.values() if loss.reason)
            joined = f" with {rows} rows of their sources" if rows > len(bad) else ""
            parts.append(f"{len(bad)} bad rows left out{joined}: {reasons}{'; ...' if len(bad) > examples else ''}")
        return ", ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, in plain types."""
        return {"rows": {row: (loss.turns, loss.images, loss.reason, loss.rows) for row, loss in self.rows.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.rows = {int(row): Losses(*loss) for row, loss in state["rows"].items()}
