"""docs/data.md says of every damaged row what the tests say; run this file to write the list anew."""

from pathlib import Path

import test_llava
import test_messages_source
import test_mimic_it
import test_own_pictures
import test_sparkles

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data.md"
BEGIN, END = "<!-- begin: damaged rows -->\n", "<!-- end: damaged rows -->\n"
READERS = {
    "LLaVA": test_llava.DAMAGED,
    "MIMIC-IT": test_mimic_it.DAMAGED,
    "Sparkles": test_sparkles.DAMAGED,
    "messages": test_messages_source.DAMAGED,
    "table": {case: (line, reason) for case, (line, reason, _) in test_own_pictures.TABLE_DAMAGED.items()},
}


def table() -> str:
    lines = ["| source | row | rejected as |", "|---|---|---|"]
    lines += [
        f"| {reader} | {case} | {reason} |" for reader, cases in READERS.items() for case, (_, reason) in cases.items()
    ]
    return "\n".join(lines) + "\n"


def test_the_document_lists_every_damaged_row():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table()
    assert table().count("\n") > 100


if __name__ == "__main__":
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(f"{head}{BEGIN}{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
