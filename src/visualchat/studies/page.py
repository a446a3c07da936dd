"""A study's page: its question, its design, what became of its claims, every figure, and how to make it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from visualchat.studies.figure import image_counts
from visualchat.studies.findings import ALL, Finding, Row
from visualchat.studies.kept import Kept
from visualchat.studies.plan import Claim, Plan

DISCUSSION = "## Discussion"
"""What stands below this heading is written by people, and stays when the page is made again."""

WORDS = {"better": "better than", "worse": "worse than", "level": "level with"}


def page(plan: Plan, kept: Kept, rows: Sequence[Row], findings: Sequence[Finding], figure: str, before: str) -> str:
    """The page in Markdown.

    Args:
        plan: Of the study.
        kept: Its answers so far.
        rows: The figures of its arms.
        findings: What became of its claims.
        figure: The figure's file, beside the page.
        before: The page as it was, whose discussion stays; empty for a new one.
    """
    blocks = [
        f"# {plan.title}",
        f"*Made by `visualchat-study study={plan.name}`, all but the discussion.*",
        "## Question",
        plan.question,
        "## Design",
        *_design(plan, kept),
    ]
    if plan.claims:
        blocks += ["## Claims", *claims(plan, findings)]
    if rows:
        blocks += ["## Exact match", *_figures(plan, kept, rows), f"![{plan.title}]({figure})"]
    blocks += _runs(kept, rows)
    if plan.beyond:
        blocks += ["## What this cannot decide", plan.beyond]
    return with_discussion(blocks, before)


def with_discussion(blocks: Sequence[str], before: str) -> str:
    """The blocks of a page as its text, with the discussion that it had before; empty for a new one."""
    _, found, discussion = before.partition(f"\n{DISCUSSION}\n")
    kept = [DISCUSSION, discussion.strip()] if found else []
    return "\n\n".join([*blocks, *kept]).rstrip() + "\n"


def _design(plan: Plan, kept: Kept) -> list[str]:
    factors = [
        [factor, *(f"{level} ({_code(typed)})" if typed else level for level, typed in levels.items())]
        for factor, levels in plan.factors.items()
    ]
    lines = [f"- *{factor}*: {', '.join(levels)}" for factor, *levels in factors]
    done, planned = len(kept.runs), len(plan.arms) * len(plan.seeds)
    dialogues = len({(question.part, question.dialogue) for question in kept.questions})
    apart = f" ({', '.join(plan.apart)} apart)" if plan.apart else ""
    asked = f"each answers the same {len(kept.questions)} questions of {dialogues} dialogues{apart}" if done else ""
    how = [f"{len(plan.arms)} arms, seeds {', '.join(map(str, plan.seeds))}: {done} of {planned} runs so far", asked]
    typed = "\n".join(
        f"visualchat-{command} {' '.join(settings)}"
        for command, settings in (("train", plan.train), ("evaluate", plan.evaluate))
        if settings
    )
    return [
        "\n".join(lines),
        f"{'; '.join(words for words in how if words)}. Intervals are of 95%, over dialogues and seeds drawn again.",
        *([f"Every run, beside its arm's settings:\n\n```\n{typed}\n```"] if typed else []),
    ]


def _code(settings: Sequence[str]) -> str:
    return " ".join(f"`{setting}`" for setting in settings)


def claims(plan: Plan, findings: Sequence[Finding]) -> list[str]:
    """Each claim and each pair of arms that it was tried on; p is corrected for their number."""
    table = [["claim", "arms", "difference", "95%", "p", "seeds", "so it is"]]
    for claim in plan.claims:
        tried = [finding for finding in findings if finding.claim == claim]
        for f in tried:
            others = [level for level in f.arm if level != claim.level] or ["all"]
            cells = [", ".join(others), f"{f.difference:+.1f}", f"{f.low:+.1f} to {f.high:+.1f}", _p(f.p)]
            table.append([words(claim), *cells, str(len(f.seeds)), f"**{f.verdict}**"])
        if not tried:
            where = ", ".join(level for _, level in claim.where) or "all"
            table.append([words(claim), where, "", "", "", "0", "not tried yet"])
    return [
        "Differences in points of exact match on the same questions; p by the same draws, corrected for all lines "
        "(Holm).",
        markdown_table(table),
    ]


def words(claim: Claim) -> str:
    """A claim as a sentence."""
    margin = f" (within {claim.margin:g})" if claim.expect == "level" else ""
    on = f" on {', '.join(claim.kinds)}" if claim.kinds else ""
    return f"{claim.level} is {WORDS[claim.expect]} {claim.against}{margin}{on}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _figures(plan: Plan, kept: Kept, rows: Sequence[Row]) -> list[str]:
    """A table by groups and one by kinds, if there are groups, and one by the number of images."""
    cells = rows[0].cells
    named = [group for group in cells if group in plan.groups]
    images = list(image_counts(cells))
    kinds = [group for group in cells if group not in (ALL, *named, *images)]
    parts = [part for part in (named, kinds, images) if part]
    tables = []
    for number, part in enumerate(parts):
        shown = part if number else [ALL, *part]
        table = [[*plan.factors, *shown, *([] if number else ["seeds"])]]
        for row in rows:
            found = [_figure(row, group) for group in shown]
            table.append([*row.arm, *found, *([] if number else [str(row.seeds)])])
        counts = [str(cells[group].questions) for group in shown]
        table.append(["questions", *[""] * (len(plan.factors) - 1), *counts, *([] if number else [""])])
        tables.append(markdown_table(table))
    return ["In percent of the questions; in brackets half the width of the interval.", *tables]


def _figure(row: Row, group: str) -> str:
    cell = row.cells[group]
    return f"{cell.value:.1f} ({(cell.high - cell.low) / 2:.1f})"


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the head."""
    head, *body = cells
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _runs(kept: Kept, rows: Sequence[Row]) -> list[str]:
    if not kept.runs:
        return []
    seconds = [row.seconds for row in rows]
    return [
        "## Runs",
        f"Trained at {commits(kept)}; the median training of an arm took {min(seconds):.0f} to "
        f"{max(seconds):.0f} s on one thread. {_shared(kept)}Every answer of every run is kept beside this page.",
    ]


def commits(kept: Kept) -> str:
    """The commits that the kept runs were made at, those with uncommitted changes marked."""
    names = sorted(
        {f"{(run.code.get('commit') or 'no commit')[:9]}{'+' * bool(run.code.get('dirty'))}" for run in kept.runs}
    )
    return ", ".join(names) + " (+: with changes)" * any(name.endswith("+") for name in names)


def _shared(kept: Kept) -> str:
    """Which runs are also those of other studies."""
    counts = Counter(run.study for run in kept.runs if run.study)
    return "".join(f"{count} runs are those of [{study}]({study}.md). " for study, count in sorted(counts.items()))
