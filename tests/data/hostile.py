"""Hostile inputs and how each is handled: the cases of `test_hostile.py`, from which docs/hostile-inputs.md is made.

python tests/data/hostile.py        writes the page again
"""

from collections.abc import Sequence
from pathlib import Path

from hostile_cases import Case
from hostile_pictures import PATHS, PICTURES
from hostile_rows import CORPORA, ROWS, TEXTS

PAGE = Path(__file__).parents[2] / "docs" / "hostile-inputs.md"

GROUPS: dict[str, Sequence[Case]] = {
    "Images": PICTURES,
    "Paths and addresses": PATHS,
    "Rows": ROWS,
    "Published corpora": CORPORA,
    "Text and length": TEXTS,
}

HEAD = """# Hostile inputs

How damaged, odd and malicious data are handled. This page is generated from the tests (`tests/data/hostile.py`), and
a test fails if it is out of date.

- **Trains**: the dialogue is used, as the table says.
- **Bad row**: it is not used. By default the run ends before its first step, or at the row's batch if only decoding
  shows the damage, with an error that names file, row and reason. With `on_error: skip` (sources) and `bad_rows: skip`
  (training) the row is left out and counted in the report.
- **Unreadable file**: always an error; a missing corpus is not a row that could be skipped.

`visualchat-data check` finds all of them before training.
"""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for name, cases in GROUPS.items():
        rows = [
            f"| {case.what.replace('|', chr(92) + '|')} | {case.stage.capitalize()}: {case.outcome} |" for case in cases
        ]
        parts.append("\n".join([f"## {name}", "", "| input | outcome |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
