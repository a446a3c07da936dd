"""VQA accuracy by the rules of visualqa.org's evaluation, and ANLS by those of the Robust Reading Competition.

VQA accuracy (arXiv 1505.00468): an answer is worth min(1, n / 3), n being how many of nine people gave it, averaged
over the ten ways to leave one person of ten out. ANLS (arXiv 1907.00490): likeness by edit distance to the nearest
accepted answer, 0 where less than half of it is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from visualchat.evaluation.predictions import Prediction, Score

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_WORDS_OF_NUMBERS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_WORDS_OF_NUMBERS.split())}
_ARTICLES = {"a", "an", "the"}
_WITH_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WITH_APOSTROPHES.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # this one the wrong way round, as it was published
"""Words that lack one apostrophe, and how they are spelt."""

_THRESHOLD = 0.5


def vqa_accuracy(predictions: Sequence[Prediction]) -> list[Score]:
    """VQA accuracy; the references are what each of the ten people said, as it was published."""
    return [Score(_vqa(p.answer, p.references), p.answer) for p in predictions]


def _vqa(prediction: str, references: Sequence[str]) -> float:
    said = _spelt(_without_punctuation(re.sub(r"[\n\t]", " ", prediction).strip()))
    if len(set(references)) > 1:
        references = [_without_punctuation(reference) for reference in references]
    if len(references) == 1:  # no one to leave out
        return float(said == references[0])
    agreeing = sum(reference == said for reference in references)
    worth = [min(1.0, (agreeing - (reference == said)) / 3) for reference in references]
    return sum(worth) / len(worth)


def _without_punctuation(text: str) -> str:
    """Marks beside a space, and all marks of a text with 1,000 in it, are taken out; others become a space."""
    thousands = re.search(r"\d,\d", text) is not None
    changed = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if thousands or beside_space else " ")
    return re.sub(r"\.(?!\d)", "", changed)


def _spelt(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes in their place."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def anls(predictions: Sequence[Prediction]) -> list[Score]:
    """Average normalised Levenshtein similarity."""
    return [Score(_similarity(p.answer, p.references), p.answer) for p in predictions]


def _similarity(prediction: str, references: Sequence[str]) -> float:
    from torchmetrics.functional.text import edit_distance  # here: it brings torch along

    said = " ".join(prediction.lower().split())
    nearest = 1.0
    for reference in (" ".join(reference.lower().split()) for reference in references):
        longest = max(len(said), len(reference))
        distance = float(edit_distance([said], [reference], reduction="sum")) if longest else 0.0
        nearest = min(nearest, distance / longest if longest else 0.0)
    return 1 - nearest if 1 - nearest >= _THRESHOLD else 0.0
