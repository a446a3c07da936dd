"""Documents name only files, tests and modules that exist; commands are the affair of tests/acceptance."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

FOLDERS = ("src", "tests", "conf", "docs", "benchmarks", "notebooks", ".ci")
"""What a path that is checked begins with; others are a reader's own or relative to the package."""

SPAN = re.compile(r"`([^`\n]+)`")
WRITTEN = {"visualchat_auto.py"}  # into a saved folder
PART = re.compile(
    r"(chat|cli|dialogue|images|plan|tiny|training)(?!\.yaml)(\.\w+)+|(attention|data|evaluation|model)(\.\w+)*\.[A-Z]\w+"
)
"""A name within the package, and not a setting (such as `data.batch_size`)."""
PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*")


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """The names of a file's test functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@functools.cache
def all_tests() -> frozenset[str]:
    return frozenset().union(*(functions_of(path) for path in (ROOT / "tests").rglob("*.py")))


def module_exists(dotted: str) -> bool:
    """Whether `visualchat.a.b` is a module, or `visualchat.a.b.name` (and `.name.attribute`) a name that one has."""
    words = dotted.split(".")
    for end in range(len(words), 0, -1):
        path = ROOT.joinpath("src", *words[:end])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            return end == len(words) or re.search(rf"\b{words[end]}\b", file.read_text(encoding="utf-8")) is not None
    return False


def is_missing(span: str) -> bool:
    """Whether a code span names a file, a test or a name of the package that does not exist."""
    path, _, test = span.partition("::")
    if PATH.fullmatch(path):
        return not (ROOT / path).exists() or bool(test and test not in functions_of(ROOT / path))
    if re.fullmatch(r"test_\w+", span):
        return span not in all_tests()
    if re.fullmatch(r"[\w/]+\.py", span):
        return not any((ROOT / "src" / "visualchat").rglob(span)) and span not in WRITTEN
    if re.fullmatch(r"visualchat(\.\w+)+", span):
        return not module_exists(span)
    return bool(PART.fullmatch(span)) and not module_exists(f"visualchat.{span}")


def missing(markdown: str) -> list[str]:
    """What the code spans of a text name and does not exist."""
    text = re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return [span for span in SPAN.findall(text) if is_missing(span)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_what_exists(path):
    assert not missing(path.read_text(encoding="utf-8"))


def test_the_api_reference_is_of_modules_that_exist():
    pages = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.rst")}
    named = {name for text in pages.values() for name in re.findall(r"automodule:: (\S+)", text)}
    assert {name for name in named if not module_exists(name)} == set()
    packages = {path.parent.name for path in (ROOT / "src" / "visualchat").glob("*/__init__.py")}
    assert {name.split(".")[1] for name in named} == packages - {"cli"}


def test_what_does_not_exist_is_found():
    text = """
`src/visualchat/nowhere.py`, `tests/images/test_decode.py::test_nothing`, `tests/images/test_decode.py::test_palette`,
`test_no_such`,
`visualchat.nowhere`, `visualchat.attention.nothing`, `visualchat.attention.enable`, `conf/data`, `model/nothing.py`,
`model/loss.py`, `training.optim.none_such`, `model.Nothing`, `data.batch_size`, `training.optim.training_steps`
"""
    assert missing(text) == [
        "src/visualchat/nowhere.py",
        "tests/images/test_decode.py::test_nothing",
        "test_no_such",
        "visualchat.nowhere",
        "visualchat.attention.nothing",
        "model/nothing.py",
        "training.optim.none_such",
        "model.Nothing",
    ]


def test_the_index_of_the_paper_is_whole():
    """Every figure, the table, every section with results and every experiment of the paper stand in it."""
    index = (ROOT / "docs" / "paper-index.md").read_text(encoding="utf-8")
    for section in ("3", "4.1", "4.2.1", "4.2.2", "4.3", "5.1.1", "5.1.2", "5.2.1", "5.2.2", "5.2.3", "5.2.4", "6"):
        assert re.search(rf"(?<![\d.]){re.escape(section)}(?![\d.]*\d)", index), f"section {section}"
    named = set(re.findall(r"experiment=(paper_\w+)", index))
    assert named == {path.stem for path in (ROOT / "conf" / "experiment").glob("paper_*.yaml")}
    assert "table 1" in index.lower()
    figures = re.search(r"## Figures\n(.*?)\n## ", index, re.DOTALL)[1]
    for figure in ("| 1 |", "| 2 |", "| 3 |", "| 4 |", "5 to 12, A.1, A.2"):
        assert figure in figures


def test_the_log_is_dated_newest_first():
    log = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    days = re.findall(r"^## (.*)$", log, re.MULTILINE)
    assert days
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", day) for day in days)
    assert days == sorted(set(days), reverse=True)


def test_the_index_of_the_documents_names_each():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for part in ("*.md", "results/*.md") for path in docs.glob(part)}
    pages -= {"README.md"}
    assert set(re.findall(r"^\| \[(.+?\.md)\]\(\1\) \|", index, re.MULTILINE)) == pages
