"""CIDEr-D (arXiv 1411.5726): captions compared by their n-grams, those that few images share weighing most.

The equations are those of section 3 and of the variant D in the appendix, as coco-caption computes them: counts are
clipped to the reference's, and a difference of length costs by a Gaussian of width 6. On the same words the figures
are the same. What differs is how captions become words: coco-caption calls Stanford's tokenizer, a Java program; the
pattern here splits plain sentences as it does, but drops brackets and the last full stop of "U.S.", and leaves
"cannot" whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from visualchat.evaluation.predictions import Prediction, Score

_LONGEST = 4
_WIDTH = 6.0
_WORD = re.compile(r"[a-z]+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[.,:/-][^\W_]+)*|[^\s\w.,:;?!\"'()\[\]{}-]")

NGram = tuple[str, ...]


def words_of(caption: str) -> list[str]:
    """Lower-case words without punctuation; "isn't" is "is" and "n't", "man's" is "man" and "'s"."""
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


def cider_d(predictions: Sequence[Prediction]) -> list[Score]:
    """CIDEr-D of each caption, from 0 to 10; what an n-gram weighs comes from the references of all of them.

    Raises:
        ValueError: There is but one caption: every n-gram of its references then weighs nothing.
    """
    if len(predictions) < 2:
        raise ValueError(
            "CIDEr-D weighs words by how many images they are said of: it needs at least 2 captions, "
            f"found {len(predictions)}"
        )
    references = [[_counts(words_of(text)) for text in p.references] for p in predictions]
    shared = Counter(ngram for group in references for ngram in set().union(*group))
    weigh = _Weights({ngram: math.log(count) for ngram, count in shared.items()}, math.log(len(references)))
    scores: list[Score] = []
    for prediction, group in zip(predictions, references, strict=True):
        said = weigh.vector(_counts(words_of(prediction.answer)))
        likeness = sum(_likeness(said, weigh.vector(counts)) for counts in group) / len(group)
        scores.append(Score(10 * likeness, prediction.answer))
    return scores


def _counts(words: Sequence[str]) -> Counter[NGram]:
    """How often each stretch of one to four words occurs."""
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, _LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


@dataclass(frozen=True)
class _Vector:
    """A caption's weighted n-grams.

    Attributes:
        weights: By n-gram.
        norms: Of the n-grams of each length.
        length: Of the caption, counted in pairs of words.
    """

    weights: Mapping[NGram, float]
    norms: Sequence[float]
    length: int


@dataclass(frozen=True)
class _Weights:
    """The logarithm of how many images each n-gram is said of, and that of how many images there are."""

    shared: Mapping[NGram, float]
    images: float

    def vector(self, counts: Mapping[NGram, int]) -> _Vector:
        weights = {ngram: count * (self.images - self.shared.get(ngram, 0.0)) for ngram, count in counts.items()}
        squares = [0.0] * _LONGEST
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
        pairs = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Vector(weights, [math.sqrt(square) for square in squares], pairs)


def _likeness(said: _Vector, reference: _Vector) -> float:
    """The mean over the lengths of n-grams of the clipped cosine, times the penalty for another length."""
    products = [0.0] * _LONGEST
    for ngram, weight in said.weights.items():
        other = reference.weights.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, other) * other
    cosines = _divided(products, zip(said.norms, reference.norms, strict=True))
    return math.exp(-((said.length - reference.length) ** 2) / (2 * _WIDTH**2)) * sum(cosines) / _LONGEST


def _divided(products: Sequence[float], norms: Iterable[tuple[float, float]]) -> list[float]:
    return [product / (one * two) if one and two else 0.0 for product, (one, two) in zip(products, norms, strict=True)]
