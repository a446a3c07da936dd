"""Where a text speaks of images: "image 2", "images 1 and 3", "the second picture", "both images", "the image".

Read by rules, for checks and figures; what they miss and what they take for a mention is counted on labelled sentences
(tests/dialogue/test_mentions.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "count", "other", "definite"]
"""By number or ordinal; by how many there are; by its relation to others ("the other image"); "the image" alone."""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Mention:
    """A place where a text speaks of images that a dialogue shows.

    Attributes:
        words: Its words.
        start: Where they begin.
        kind: How it names the images.
        numbers: Of the images, from 1, in ascending order; empty where it names none.
        count: How many images it takes to speak so.
        quoted: Whether it stands within quotation marks: then the words are likely what an image says, not a mention.
    """

    words: str
    start: int
    kind: Kind
    numbers: tuple[int, ...]
    count: int
    quoted: bool


_ONE = r"(?:image|picture|photo|photograph)"
_NUMBER = rf"(?:\d{{1,3}}(?!\.?\d)|(?:{'|'.join(CARDINALS)})\b)"
_ORDINAL = rf"(?:{'|'.join(ORDINALS)}|\d{{1,2}}(?:st|nd|rd|th))"
_LINK = r"(?:\s*,\s*(?:and\s+|or\s+)?|\s+and\s+|\s*&\s*|\s+or\s+|\s+versus\s+|\s+vs\.?\s+)"
_SIGN = r"(?:\s+(?:no\.?|number|nr\.?)\s*#?|\s*\(\s*#?|\s*#|\s+)"
_THE = r"(?:the|these|those|all|your|my|of)"
_SCENERY = (
    r"(?!\s+(?:(?:that\s+(?:is|are)\s+)?hanging|(?:frames?|windows?|albums?|books?|shoots?|credits?|quality)\b"
    r"|on\s+(?:the|a|an|its|his|her|their)\s+(?:\w+\s+)?(?:wall|desk|shel(?:f|ves)|table|fridge|refrigerator|door|screen"
    r"|monitor|page|shirt|t-shirt|mug|box|cover|fireplace|mantel)))"
)
"""What follows the name of an image that stands within another image, or a word that only begins like one."""
_MEASURE = r"(?!\s*(?:%|(?:px|pixels?|[kmg]b|dpi|by|percent|years?|times|people|persons)\b|[x\u00d7]\s*\d)|-?d\b)"

_MENTION = re.compile(
    rf"\b(?:the\s+)?first\s+(?P<leading>{'|'.join(CARDINALS[1:])}|\d+)\s+{_ONE}s\b{_SCENERY}"
    rf"|\b(?P<range>{_ONE}s?\s+#?(?P<low>\d+)\s*(?:-|\u2013|to|through)\s*#?(?P<high>\d+))\b{_MEASURE}"
    rf"|\b(?P<list>{_ONE}s{_SIGN}{_NUMBER}(?:{_LINK}(?:{_ONE}\s+)?#?{_NUMBER})*){_MEASURE}"
    rf"|\b(?P<one>{_ONE}{_SIGN}{_NUMBER}){_MEASURE}"
    rf"|\b(?P<ordinals>{_ORDINAL}(?:{_LINK}(?:the\s+)?{_ORDINAL})*)\s+(?:and\s+(?:the\s+)?(?P<last>last)\s+)?{_ONE}s?\b{_SCENERY}"
    rf"|\b(?:both(?:\s+of)?(?:\s+(?:the|these|those))?|{_THE}(?:\s+the)?\s+(?P<count>{'|'.join(CARDINALS[1:])}|\d+))"
    rf"\s+(?:\w+\s+)??{_ONE}s\b{_SCENERY}"
    rf"|\b(?P<pair>(?:the|this|that|your)\s+pair\s+of\s+{_ONE}s)\b"
    rf"|\bthe\s+(?P<relation>other|previous|earlier|preceding|former|latter)\s+{_ONE}\b{_SCENERY}"
    rf"|\b(?P<definite>(?:the|this)\s+(?:last\s+|latest\s+|given\s+|provided\s+)?{_ONE})\b{_SCENERY}",
    re.IGNORECASE,
)
_PICTURE_THIS = re.compile(
    r"(?:^|[.!?:]\s+|\b(?:to|can|could|you|i|we|please|just|will)\s+)(?:picture|photograph)\s+[a-z]", re.IGNORECASE
)
_QUOTES = re.compile(r"\"[^\"]*\"|\u201c[^\u201d]*\u201d|(?<!\w)'[^']*'(?!\w)|\u2018[^\u2019]*\u2019|`[^`]*`")


def mentions(text: str) -> Iterator[Mention]:
    """The mentions of a text, in order."""
    quotes = [match.span() for match in _QUOTES.finditer(text)]
    verbs = {match.end() for match in _PICTURE_THIS.finditer(text)}
    for match in _MENTION.finditer(text):
        words, start = match[0], match.start()
        if match["one"] and any(start < end <= match.end() for end in verbs):
            continue  # "Picture two dogs"
        kind, numbers, count = _meaning(match)
        yield Mention(words, start, kind, numbers, count, any(a < start < b for a, b in quotes))


def mentioned(text: str) -> tuple[int, ...]:
    """The numbers of the images that a text names by number, in ascending order."""
    return tuple(sorted({number for mention in mentions(text) for number in mention.numbers if not mention.quoted}))


def without_numbers(text: str) -> str:
    """The text with a mark in place of every number and ordinal: equal for texts that differ in these alone."""
    return _VALUES.sub("#", text)


def _meaning(match: re.Match[str]) -> tuple[Kind, tuple[int, ...], int]:
    """Kind, numbers and count of a match."""
    if match["leading"]:
        numbers = tuple(range(1, _value(match["leading"]) + 1))
    elif match["range"]:
        numbers = tuple(range(int(match["low"]), int(match["high"]) + 1))
    elif named := match["list"] or match["one"] or match["ordinals"]:
        numbers = tuple(sorted({_value(word) for word in _VALUES.findall(named)}))
    elif match["definite"]:
        return "definite", (), 1
    elif match["relation"]:
        return "other", (), 2
    else:
        return "count", (), _value(match["count"]) if match["count"] else 2
    return "number", numbers, max(numbers, default=0)


_VALUES = re.compile(rf"\d+|\b(?:{'|'.join((*ORDINALS, *CARDINALS))})\b", re.IGNORECASE)


def _value(word: str) -> int:
    word = word.lower()
    if word.isdigit():
        return int(word)
    return (ORDINALS if word in ORDINALS else CARDINALS).index(word) + 1
