"""Figures of answers, by name: of each answer (`METRICS`), and of a set of answers as a whole (`CORPUS`).

A `METRICS` entry takes all answers of a part and gives one `Score` for each; the part's figure is their mean. A
`CORPUS` entry gives one number that is not a mean over answers, so no interval stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from visualchat.evaluation.metrics.choice import (
    accuracy,
    list_f1,
    multiple_choice,
    option_likelihood,
    short_answer,
    yes_no,
)
from visualchat.evaluation.metrics.cider import cider_d
from visualchat.evaluation.metrics.groups import groups_right, rounds_right
from visualchat.evaluation.metrics.references import reference_consistency
from visualchat.evaluation.metrics.text import bleu_4, chrf, perplexity, rouge_l
from visualchat.evaluation.metrics.vqa import anls, vqa_accuracy
from visualchat.evaluation.predictions import Prediction, Score

Metric = Callable[[Sequence[Prediction]], list[Score]]
CorpusMetric = Callable[[Sequence[Prediction]], float]

METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "multiple_choice": multiple_choice,
    "option_likelihood": option_likelihood,
    "yes_no": yes_no,
    "short_answer": short_answer,
    "list_f1": list_f1,
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "rouge_l": rouge_l,
    "cider_d": cider_d,
    "reference_consistency": reference_consistency,
}
RIGHT_OR_WRONG = frozenset(
    {"accuracy", "multiple_choice", "option_likelihood", "yes_no", "short_answer", "reference_consistency"}
)
"""Those of `METRICS` that tell whether an answer is right; the others tell how nearly it is."""
CORPUS: Mapping[str, CorpusMetric] = {
    "bleu_4": bleu_4,
    "chrf": chrf,
    "perplexity": perplexity,
    "groups_right": groups_right,
    "rounds_right": rounds_right,
}
