"""Whether answers speak only of images that exist and were shown by then."""

from __future__ import annotations

from collections.abc import Sequence

from visualchat.dialogue.mentions import mentions
from visualchat.evaluation.predictions import Prediction, Score


def reference_consistency(predictions: Sequence[Prediction]) -> list[Score]:
    """Whether each answer speaks of no image beyond those sent by then; one that speaks of none is consistent.

    "Image 3" where two were sent is not, nor are "both images" where there is one. Quoted words do not count.
    """
    return [Score(float(not beyond(p.answer, p.sent)), p.answer) for p in predictions]


def beyond(answer: str, sent: int) -> list[str]:
    """The words of an answer that speak of images which were not sent.

    Args:
        answer: Any words.
        sent: Images of the dialogue so far.
    """
    return [
        mention.words
        for mention in mentions(answer)
        if not mention.quoted and (mention.count > sent or min(mention.numbers, default=1) < 1)
    ]
