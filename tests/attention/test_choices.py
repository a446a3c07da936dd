"""What the documents offer under `attention=` is what exists."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from visualchat.cli.config import CONF
from visualchat.model.configuration_visualchat import MODEL_KINDS

CHOICES = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((Path(CONF) / "attention").glob("[!_]*.yaml"))
}
ROOT = Path(__file__).resolve().parents[2]


def cell(document: str, pattern: str) -> str:
    """The one match of a pattern in a document."""
    (found,) = re.findall(pattern, (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)
    return found


def test_the_documents_offer_exactly_what_exists():
    assert {choice["kind"] for choice in CHOICES.values()} == {*MODEL_KINDS}
    offered = re.findall(r"`(\w+)`", cell("README.md", r"^\| `attention` \| (.*?) \|$"))
    assert sorted(offered) == sorted(CHOICES)
    table = cell("docs/attention.md", r"^\| kind \| image_context .*?\n\|[-|]+\n(.*?)\n\n")
    assert sorted(re.findall(r"^\| `(\w+)` ", table, flags=re.MULTILINE)) == sorted(CHOICES)


def test_every_choice_of_the_readme_exists():
    """In each row that begins with groups of conf/, every word in code font is a file of one of them."""
    table = (ROOT / "README.md").read_text()
    found = re.findall(r"^\| (`[a-z/]+[a-z]`(?:, `[a-z/]+[a-z]`)*) \| (.*?) \|$", table, flags=re.MULTILINE)
    rows = [(re.findall(r"`(.+?)`", groups), text) for groups, text in found]
    rows = [(groups, text) for groups, text in rows if all((Path(CONF) / group).is_dir() for group in groups)]
    assert len(rows) >= 8
    for groups, text in rows:
        files = {path.stem for group in groups for path in (Path(CONF) / group).glob("*.yaml")}
        named = set(re.findall(r"`([a-z]\w+)`", text))
        assert named <= files, f"{groups}: {named - files} do not exist"


ARMS = {"`numbered`": "mmca_joint, learned"}
"""What the study of image numbers calls a row of the documents, where that is not its own name."""


def figures_of(study: str, factors: int) -> dict[str, list[str]]:
    """All cells of a study's page by arm, whose levels stand in the first columns."""
    text = (ROOT / "docs" / "results" / f"{study}.md").read_text()
    page = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    of: dict[str, list[str]] = {}
    for row in page:
        of.setdefault(", ".join(row[:factors]), []).extend(row[factors:])
    return of


@pytest.mark.parametrize(
    ("document", "study", "factors"), [("README.md", "hops", 1), ("docs/attention.md", "image_numbers", 2)]
)
def test_the_figures_of_a_table_are_those_of_the_study(document, study, factors):
    """Each figure of a row stands in the rows of the study's page for the same arm."""
    of = figures_of(study, factors)
    table = cell(document, r"^\| (?:exact match, %)? ?\| all \| .*?\n\|[-:|]+\n(.*?)\n\n")
    for line in table.splitlines():
        name, *figures = (part.strip() for part in line.split("|")[1:-1])
        arm = name.split("`")[1]
        if factors == 2:
            arm = ARMS.get(name) or f"{arm}, {'learned' if 'with numbers' in name else 'none'}"
        whole, *others = [figure for part in figures if part not in ("yes", "no") for figure in part.split(" / ")]
        assert whole in of[arm]
        assert others
        known = {known.split(" ")[0] for known in of[arm]}
        assert {*others} <= known, name


def test_the_speeds_of_the_kinds_are_those_of_the_committed_result():
    found = json.loads((ROOT / "benchmarks" / "results" / "attention-cpu.json").read_text())["layouts"]
    measured = {r["form"].removesuffix("/sdpa"): r["training_speedup"] for r in found if r["layout"] == "8 images"}
    measured |= {"numbered": measured["mmca_joint"], "causal": 1.0}
    table = cell("docs/attention.md", r"^\| kind \| image_context .*?\n\|[-|]+\n(.*?)\n\n")
    rows = [[part.strip(" `") for part in row.split("|")[1:-1]] for row in table.splitlines()]
    assert {row[0]: row[4] for row in rows if row[4]} == {
        row[0]: f"{measured[row[0]]:.1f}" for row in rows if row[0] in measured
    }


def test_the_qualities_of_the_kinds_are_those_of_the_committed_sweep():
    with (ROOT / "benchmarks" / "results" / "kinds-tiny.csv").open(newline="") as file:
        measured = {row["attention"]: f"{100 * float(row['exact_match/all']):.1f}" for row in csv.DictReader(file)}
    table = cell("docs/attention.md", r"^\| kind \| image_context .*?\n\|[-|]+\n(.*?)\n\n")
    rows = [[part.strip(" `") for part in row.split("|")[1:-1]] for row in table.splitlines()]
    assert {row[0]: row[5] for row in rows} == measured


def test_the_speeds_by_threads_are_those_of_the_committed_results():
    table = cell("docs/attention.md", r"^\| kind \| 8 images, one thread .*?\n\|[-:|]+\n(.*?)\n\n")
    results = [
        json.loads((ROOT / "benchmarks" / "results" / name).read_text())["layouts"]
        for name in ("attention-cpu-1.json", "attention-cpu.json")
    ]
    for row in table.splitlines():
        kind, *figures = (part.strip(" `") for part in row.split("|")[1:-1])
        assert figures == [
            f"{r['training_speedup']:.2f}"
            for layout in ("8 images", "3 images")
            for result in results
            for r in result
            if (r["layout"], r["form"]) == (layout, f"{kind}/sdpa")
        ]
