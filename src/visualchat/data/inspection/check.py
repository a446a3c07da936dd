"""Every row and every dialogue looked at before the first step, each row accounted for, damaged images included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from visualchat.data.batching.collate import BatchingProcessor
from visualchat.data.batching.images import check_images
from visualchat.data.blend.origin import SourceRow, digest_of, place_of, rows_in
from visualchat.data.inspection.survey import Finding, survey, totals
from visualchat.data.progress import watched
from visualchat.data.sources import Reason, Report, RowError, Source
from visualchat.data.workers import map_in_workers
from visualchat.dialogue import Dialogue


@dataclass
class Check:
    """A look at everything, and what it has found so far.

    Attributes:
        parts: The data sets.
        sources: The corpora that they draw from, by name.
        damaged: Dialogues of sources with an image that cannot be decoded, and why.
        findings: What is known of each dialogue of each part.
        complete: Whether everything has been looked at.
    """

    parts: Mapping[str, Sequence[Dialogue]]
    sources: Mapping[str, Source]
    damaged: dict[SourceRow, str] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    complete: bool = False

    def run(self, processor: BatchingProcessor, max_length: int | None, num_workers: int) -> None:
        """Decode the images of every row that a part takes from, then measure every dialogue."""
        wanted: dict[SourceRow, None] = {}
        for name, dialogues in self.parts.items():
            for index in range(len(dialogues)):
                wanted.update(dict.fromkeys(self._rows(name, index)))
        damages = map_in_workers(partial(_damage, self.sources), rows := [*wanted], num_workers)
        for row, reason in zip(rows, watched(damages, "decoding images", len(rows)), strict=True):
            if reason:
                self.damaged[row] = reason
        for name, dialogues in self.parts.items():
            findings = self.findings[name] = []
            looked = survey(dialogues, processor, max_length, decode=not self.sources, num_workers=num_workers)
            for finding in watched(looked, f"measuring {name}", len(dialogues)):
                findings.append(self._with_damage(name, finding))
        self.complete = True

    def _rows(self, part: str, index: int) -> tuple[SourceRow, ...]:
        return tuple((self._names[id(source)], number) for source, number in rows_in(self.parts[part], index))

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(source): name for name, source in self.sources.items()}

    def _with_damage(self, part: str, finding: Finding) -> Finding:
        """The finding of a dialogue, which is bad if one of its rows is."""
        rows = self._rows(part, finding.row)
        damaged = [row for row in rows if row in self.damaged]
        if not damaged and not finding.reason:
            return finding
        sound = sum(len(self.sources[name].entries[number].members) for name, number in set(rows) - set(damaged))
        reason = finding.reason or f"{len(damaged)} of its {len(rows)} rows have a damaged image"
        return replace(finding, reason=reason, damage=bool(damaged), sound_rows=sound)

    def reports(self) -> dict[str, Report]:
        """What became of the rows of each source, damaged images among the rejected."""
        reports = {}
        for name, source in self.sources.items():
            report = source.report()
            bad = [number for owner, number in self.damaged if owner == name]
            rows = sum(len(source.entries[number].members) for number in bad)
            rejected = dict(report.rejected) | ({str(Reason.DAMAGED_IMAGE): rows} if rows else {})
            reports[name] = replace(
                report, members=report.members - rows, dialogues=report.dialogues - len(bad), rejected=rejected
            )
        return reports

    def errors(self) -> list[RowError]:
        """Every bad row, then every dialogue that is bad though its rows are not."""
        errors = [error for source in self.sources.values() for error in source.errors]
        for (name, number), detail in self.damaged.items():
            source = self.sources[name]
            errors.append(RowError(source.name, source.place(number), Reason.DAMAGED_IMAGE, detail))
        for part, findings in self.findings.items():
            for finding in findings:
                if finding.reason and not finding.damage:
                    place = place_of(self.parts[part], finding.row)
                    errors.append(RowError(part, place, Reason.UNFIT, finding.reason))
        return errors

    def empty(self) -> list[str]:
        """The parts that hold no sound dialogue."""
        return [name for name, found in self.findings.items() if all(finding.reason for finding in found)]

    def as_json(self) -> dict[str, Any]:
        """All of it in plain types, in an order that depends on the data alone."""
        return {
            "complete": self.complete,
            "totals": {
                part: {name: asdict(sums) for name, sums in totals(found).items()}
                for part, found in self.findings.items()
            },
            "rows": {name: _plain(report) for name, report in self.reports().items()},
            "bad": [
                {"source": e.source, "row": e.row, "reason": str(e.reason), "detail": e.detail} for e in self.errors()
            ],
            "digests": {name: digest_of(dialogues) for name, dialogues in self.parts.items()},
        }


def _plain(report: Report) -> dict[str, Any]:
    counts = {"rows": report.rows, "used": report.members, "dialogues": report.dialogues}
    return {**counts, "left out": report.left_out, "rejected": report.rejected, "notes": report.notes}


def _damage(sources: Mapping[str, Source], row: SourceRow) -> str:
    """Why the images of a source's dialogue cannot be decoded; empty where they can."""
    name, index = row
    try:
        check_images(sources[name][index])
    except ValueError as error:
        return str(error)
    return ""


def reasons(report: Report) -> list[str]:
    """Why rows are not used, and what was noted, one count a line."""
    groups = (("rejected", report.rejected), ("left out", report.left_out), ("noted", report.notes))
    return [f"{kind}: {count} {reason}" for kind, counts in groups for reason, count in Counter(counts).most_common()]
