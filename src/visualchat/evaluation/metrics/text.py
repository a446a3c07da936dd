"""Texts compared with accepted texts, by torchmetrics: ROUGE-L of each answer; BLEU-4, chrF and perplexity of all.

torchmetrics is imported where it computes: it brings torch along, and most commands compute none of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from visualchat.evaluation.predictions import Prediction, Score

if TYPE_CHECKING:
    from torch import Tensor


def rouge_l(predictions: Sequence[Prediction]) -> list[Score]:
    """ROUGE-L's F-measure of each answer with the accepted text that it is nearest to.

    It is the measure of Lin's package, with equal weight on precision and recall; coco-caption weighs recall more.
    """
    return [Score(_rouge_l(p.answer, p.references), p.answer) for p in predictions]


def _rouge_l(answer: str, references: Sequence[str]) -> float:
    from torchmetrics.functional.text import rouge_score

    figures = rouge_score(answer, [list(references)], accumulate="best", rouge_keys="rougeL")
    return float(figures["rougeL_fmeasure"])


def bleu_4(predictions: Sequence[Prediction]) -> float:
    """BLEU over all answers, n-grams up to four words, unsmoothed; words are what stands between spaces."""
    from torchmetrics.functional.text import bleu_score

    return float(bleu_score([p.answer for p in predictions], [p.references for p in predictions]))


def chrf(predictions: Sequence[Prediction]) -> float:
    """ChrF over all answers: n-grams of up to six letters, no words, recall weighing twice."""
    from torchmetrics.functional.text import chrf_score

    figure = chrf_score([p.answer for p in predictions], [p.references for p in predictions], n_word_order=0)
    return float(cast("Tensor", figure))


def perplexity(predictions: Sequence[Prediction]) -> float:
    """The exponential of the answer loss: of the true answers given the true history.

    Raises:
        ValueError: The predictions hold no loss, as where the model's own answers are the history.
    """
    if any(p.loss is None or p.tokens is None for p in predictions) or not predictions:
        raise ValueError("perplexity needs the losses of the true answers: it is measured with the true history")
    return math.exp(sum(p.loss or 0.0 for p in predictions) / sum(p.tokens or 0 for p in predictions))
