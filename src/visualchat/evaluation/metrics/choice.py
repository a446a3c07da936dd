"""Multiple choice, yes or no, and short answers: what a text answers, read strictly.

An answer that names no option, or more than one, is not read: it is wrong, and it is counted. Nothing is guessed, and
no letter is picked out of the middle of a sentence.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from visualchat.evaluation.predictions import Prediction, Score

LETTERS = string.ascii_uppercase

_LEAD = r"(?:(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*(?:option\s+)?)?"
_LETTER = re.compile(
    rf"{_LEAD}[*(\[]*(?P<letter>[a-z])[*)\]]*(?:(?:[.:),]|\s+-)[*)\]]*\s*(?P<rest>.*))?", re.IGNORECASE | re.DOTALL
)
_LED = re.compile(_LEAD, re.IGNORECASE)
_TRUTH = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_YES_NO = re.compile(r"[*\"'(]*(yes|no|true|false)\b(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_BOTH = re.compile(r"[*\"')]*[\s,/]*(?:(?:or|and)\s+)?(?:yes|no|true|false)\b", re.IGNORECASE)


def option_of(text: str, options: Sequence[str]) -> int | None:
    """Which option a text chooses, as an index; None where that cannot be told.

    A letter is read alone ("B", "(b)", "Answer: B", "The answer is B.") or before the words of that option ("B. a
    cat"); the words of exactly one option are read alone, too.
    """
    said, plain = text.strip(), [_plain(option) for option in options]
    if match := _LETTER.fullmatch(said):
        index = LETTERS.index(match["letter"].upper())
        if index < len(options) and _plain(match["rest"] or "") in ("", plain[index]):
            return index
    words = {_plain(said), _plain(_LED.sub("", said, count=1))} - {""}
    same = [index for index, option in enumerate(plain) if option in words]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    """Words in lower case, without marks at the ends."""
    return " ".join(text.lower().split()).strip(" .*\"'()[]")


def multiple_choice(predictions: Sequence[Prediction]) -> list[Score]:
    """Whether each answer chooses the right option, read from its words.

    Raises:
        ValueError: A question has no options, or its true answer is none of them.
    """
    scores: list[Score] = []
    for prediction in predictions:
        truth = _true_option(prediction)
        chosen = option_of(prediction.answer, prediction.options)
        scores.append(Score(float(chosen == truth), None if chosen is None else LETTERS[chosen]))
    return scores


def option_likelihood(predictions: Sequence[Prediction]) -> list[Score]:
    """Whether the right option is the likeliest answer; nothing is read from words.

    Options that are equally likely share the point.

    Raises:
        ValueError: As `multiple_choice`, or the losses of the options were not measured.
    """
    scores: list[Score] = []
    for prediction in predictions:
        truth = _true_option(prediction)
        losses = prediction.option_losses
        if len(losses) != len(prediction.options):
            raise ValueError(
                f"{_named(prediction)}: {len(prediction.options)} options, but {len(losses)} of their losses were "
                "measured; evaluate with evaluation.option_likelihood=true"
            )
        best = [index for index, loss in enumerate(losses) if loss == min(losses)]
        scores.append(Score(float(truth in best) / len(best), "".join(LETTERS[index] for index in best)))
    return scores


def _true_option(prediction: Prediction) -> int:
    truth = prediction.references[0]
    index = option_of(truth, prediction.options)
    if index is None:
        raise ValueError(
            f"{_named(prediction)}: the true answer {truth!r:.40} is none of its {len(prediction.options)} options; "
            "this is not a multiple-choice question"
        )
    return index


def _named(prediction: Prediction) -> str:
    return f"{prediction.part}, {prediction.dialogue}, round {prediction.round}"


def yes_or_no(text: str) -> str | None:
    """`yes` or `no`, which a text opens with; true and false count as these. None where that cannot be told."""
    match = _YES_NO.match(text.strip())
    if match is None or _BOTH.match(match["rest"]):
        return None
    return _TRUTH[match[1].lower()]


def yes_no(predictions: Sequence[Prediction]) -> list[Score]:
    """Whether each answer says yes or no (or true or false) rightly.

    Raises:
        ValueError: A true answer is neither.
    """
    scores: list[Score] = []
    for prediction in predictions:
        truth = yes_or_no(prediction.references[0])
        if truth is None:
            raise ValueError(
                f"{_named(prediction)}: the true answer {prediction.references[0]!r:.40} is neither yes nor no"
            )
        said = yes_or_no(prediction.answer)
        scores.append(Score(float(said == truth), said))
    return scores


def short_answer(predictions: Sequence[Prediction]) -> list[Score]:
    """Whether each answer is an accepted one, but for case, spaces and the marks at its ends."""
    scores: list[Score] = []
    for prediction in predictions:
        said = _plain(prediction.answer)
        right = said in [_plain(reference) for reference in prediction.references]
        scores.append(Score(float(bool(said) and right), said or None))
    return scores


def list_f1(predictions: Sequence[Prediction]) -> list[Score]:
    """F1 of the names in each answer, commas between them, with those of the true one; MIMIC's measure of lists.

    MIMIC adds up names over all questions first; this is the mean over questions, which has an interval.
    """
    scores: list[Score] = []
    for prediction in predictions:
        said, true = _names(prediction.answer), _names(prediction.references[0])
        scores.append(Score(2 * len(said & true) / (len(said) + len(true)), ", ".join(sorted(said)) or None))
    return scores


def _names(text: str) -> set[str]:
    """Names between commas, and before the last one an "and"."""
    return {_plain(name) for name in re.split(r",(?:\s+and\b)?|\s+and\s+", text)} - {""}


def accuracy(predictions: Sequence[Prediction]) -> list[Score]:
    """Each answer scored by the form of its question: a choice, yes or no, or else a short answer."""
    return [_reader(prediction)([prediction])[0] for prediction in predictions]


def _reader(prediction: Prediction) -> Callable[[Sequence[Prediction]], list[Score]]:
    if prediction.options:
        return multiple_choice
    return yes_no if yes_or_no(prediction.references[0]) else short_answer
