"""The words of the documents: a glossary whose terms are used, and none of the words that were given up for others."""

import io
import json
import re
import tokenize
from pathlib import Path

import pytest

FSTRING_MIDDLE = getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)  # of Python 3.12 on
ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "docs" / "README.md"
CARD = ROOT / "src" / "visualchat" / "tiny" / "backbones" / "README.md"
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", CARD, *(ROOT / "docs").glob("*.md")])

GIVEN_UP = {
    r"pictures?": "image; figure for a plot",
    r"anew|afresh": "again, from scratch",
    r"go(es)? on|went on|going on": "resumes, continues",
    r"slipped": "inserted",
    r"foreign": "unrelated, unknown",
    r"nobody": "no one, nothing",
    r"dealt out": "distributed",
    r"hundredths?": "percentile",
    r"in silence|without a word|without words": "silently, without a message",
    r"to the letter|to the last bit": "unchanged, bit for bit",
    r"blanks?": "space, whitespace",
    r"(?<!there )(is|are|was|were) no (?!longer|more)": "is not a",
}
"""Words that are not used, and what is said in their place."""


IN_CODE = (
    "anew",
    r"go(es)? on|went on|going on",
    "slipped",
    "foreign",
    "nobody",
    r"(dealt|deals?) out",
    "hundredths?",
    "not to be had",
)
"""Of these words those that messages, docstrings and comments do without, too."""


def prose(markdown: str) -> str:
    """A text without code, the targets of links and comments."""
    text = re.sub(r"^ *```.*?^ *```|^ {4}.*?$|<!--.*?-->", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"`[^`]*`|\]\([^)]*\)", "", text))


def given_up(markdown: str) -> list[str]:
    """The words of a text that were given up, each with what to say."""
    text = prose(markdown)
    return [
        f"{found[0]!r}: say {instead}"
        for pattern, instead in GIVEN_UP.items()
        for found in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


def glossary() -> dict[str, str]:
    section = INDEX.read_text(encoding="utf-8").split("\n## Words\n")[1]
    return dict(re.findall(r"^\| ([a-z ]+) \| (.+) \|$", section, re.MULTILINE)[1:])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_uses_the_words_that_were_agreed(path):
    assert not given_up(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_uses_the_words_that_were_agreed(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not given_up("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_of_the_configuration_use_the_words_that_were_agreed(path):
    comments = [line.partition("# ")[2] for line in path.read_text(encoding="utf-8").splitlines()]
    assert not given_up("\n\n".join(comments))


def test_literals_and_comments_of_the_code_do_without_the_plainest_of_those_words():
    pattern = re.compile(rf"\b(?:{'|'.join(IN_CODE)})\b", re.IGNORECASE)
    wrong = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT, FSTRING_MIDDLE) and (
                word := pattern.search(token.string)
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {word[0]!r}")
    assert not wrong


def test_words_that_were_given_up_are_found_in_prose_alone():
    text = (
        "A picture goes on [here](picture.md), `a picture`; there is no harm, it is no longer so, but it is no image."
    )
    assert given_up(text) == [
        "'picture': say image; figure for a plot",
        "'goes on': say resumes, continues",
        "'is no ': say is not a",
    ]


def test_the_glossary_is_short_sorted_and_used():
    words = glossary()
    assert 30 <= len(words) <= 40
    assert list(words) == sorted(words)
    elsewhere = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path != INDEX)
    forms = {word: rf"(?<![a-z]){word.replace(' ', '[ _]')}(s|es)?(?![a-z])" for word in words}
    unused = [word for word, form in forms.items() if not re.search(form, elsewhere, re.IGNORECASE)]
    assert not unused
