"""Text figures beside published packages; perplexity beside torchmetrics', of the same logits."""

import pytest
import torch
from answers import answered, values
from torchmetrics.functional.text import perplexity

from visualchat.evaluation.metrics import CORPUS, METRICS
from visualchat.evaluation.metrics.groups import GROUP


def test_rouge_l():
    pairs = [
        ("police kill the gunman", "police killed the gunman"),  # Lin 2004: 3 of 4 words in order
        ("the gunman kill police", "police killed the gunman"),  # 2 of 4
        ("a dog", "a red cat on the mat"),
        ("", "a"),
    ]
    expected = [0.75, 0.5, 2 * (1 / 2 * 1 / 6) / (1 / 2 + 1 / 6), 0]
    assert values(METRICS["rouge_l"]([answered(*pair) for pair in pairs])) == pytest.approx(expected)
    assert values(METRICS["rouge_l"]([answered("a cat", "x", "a cat")])) == pytest.approx([1])


def test_bleu_and_chrf_of_a_whole_set_are_sacrebleus():
    """The figures of sacrebleu 2 for these texts, split at spaces, unsmoothed, chrF without words."""
    told = [
        answered("the cat is on the mat", "there is a cat on the mat", "a cat is on the mat"),
        answered("a red bus stands there", "a red bus is parked", "one bus stands there"),
    ]
    assert CORPUS["bleu_4"](told) == pytest.approx(0.6931810586739212, abs=1e-6)
    assert CORPUS["chrf"](told) == pytest.approx(0.829434169571039, abs=1e-4)  # torchmetrics smooths


def test_perplexity_is_torchmetrics():
    logits, truth = torch.randn(1, 7, 11, generator=torch.Generator().manual_seed(0)), torch.arange(7)[None]
    losses = torch.nn.functional.cross_entropy(logits[0], truth[0], reduction="none")
    halves = [answered("", "x", loss=float(half.sum()), tokens=len(half)) for half in losses.split([3, 4])]
    assert CORPUS["perplexity"](halves) == pytest.approx(float(perplexity(logits, truth)), rel=1e-5)
    assert CORPUS["perplexity"]([answered("", "x", loss=0.0, tokens=3)]) == 1
    with pytest.raises(ValueError, match="measured with the true history"):
        CORPUS["perplexity"]([*halves, answered("", "x")])


def test_groups_and_dialogues_count_when_all_of_them_is_right():
    def said(answer, truth, group="", dialogue="d", options=("x", "y")):
        return answered(answer, truth, options=options, tags={GROUP: group} if group else {}, dialogue=dialogue)

    told = [said("A", "A", "1", "p"), said("y", "B", "1", "q"), said("A", "B", "2", "p"), said("B", "B", "2", "r"),
            said("true", "yes", dialogue="q", options=()), said("red", "red", dialogue="r", options=())]  # fmt: skip
    assert CORPUS["groups_right"](told) == 1 / 2
    assert CORPUS["rounds_right"](told) == 2 / 3
    assert CORPUS["groups_right"]([*told, said("", "A", "2")]) == 1 / 2
    with pytest.raises(ValueError, match="no question belongs to a group"):
        CORPUS["groups_right"](told[4:])
