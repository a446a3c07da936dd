"""Two processes: every dialogue once an epoch, and the very steps that one process makes of the joint batches."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")


def train(backbones, folder: Path, ranks: int, batch_size: int, *cache: str) -> list[dict]:
    arguments = [str(backbones.vision), str(backbones.language), str(folder), str(ranks), str(batch_size), *cache]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"ranks{ranks}-{rank}.pt") for rank in range(ranks)]


@pytest.mark.slow
def test_two_ranks_train_as_one(backbones, processor, tmp_path):
    """Nine dialogues on two ranks: in the last step one rank is idle."""
    (alone,) = train(backbones, tmp_path, ranks=1, batch_size=2)
    together = train(backbones, tmp_path, ranks=2, batch_size=1)
    for rank in together:  # each reads half of the dialogues for the plan of packed rows, and knows of all
        assert list(rank["lengths"].items()) == list(alone["lengths"].items())
        assert rank["refusal"] == together[0]["refusal"]
        assert "the first turn alone has" in rank["refusal"]
    idle = sum(1 for rank in together for tokens in rank["seen"] if len(tokens) < 20)
    assert idle == 2  # once an epoch
    seen = Counter(tuple(tokens) for rank in together for tokens in rank["seen"] if len(tokens) >= 20)
    assert seen == Counter(tuple(tokens) for tokens in alone["seen"])
    assert set(seen.values()) == {2}
    assert torch.equal(together[0]["projector"], together[1]["projector"])
    # float64; AdamW divides by a root of squared gradients, which enlarges rounding errors of tiny ones
    assert torch.allclose(together[0]["projector"], alone["projector"], rtol=0, atol=1e-9)
    check_metrics(alone["rows"], together[0]["rows"])
    pages = [{page.name: page.read_text() for page in (tmp_path / f"of{n}/samples").iterdir()} for n in (1, 2)]
    assert len(pages[0]) == 2
    assert pages[0] == pages[1]


def check_metrics(alone: list[dict], together: list[dict]) -> None:
    """What two ranks log together is what one rank logs, but for padding, time and memory."""
    apart = ("speed/", "memory/", "data/")
    assert [sorted(row) for row in alone] == [sorted(row) for row in together]
    assert {name for row in alone for name in row} >= {
        *("train/loss", "train/loss/most", "train/loss/few", "train/gradient_norm", "lr/embedding"),
        *("validation/loss", "validation/loss/few", "validation/exact_match", "validation/exact_match/most"),
    }
    for ours, theirs in zip(alone, together, strict=True):
        for name in ours:
            if not name.startswith(apart):
                # sums pass through fp32
                assert theirs[name] == pytest.approx(ours[name], rel=1e-5, abs=1e-6), name
        if "data/answer_tokens" in ours:
            assert theirs["data/answer_tokens"] == pytest.approx(ours["data/answer_tokens"], rel=1e-5)


@pytest.mark.slow
def test_ranks_share_one_feature_cache(backbones, processor, tmp_path):
    """Six pictures: what one rank encoded the other reads, and training is the same."""
    cache = tmp_path / "cache"
    first, second = (train(backbones, tmp_path, 2, 1, str(cache)) for _ in range(2))
    assert all(torch.equal(rank["projector"], first[0]["projector"]) for rank in first + second)
    files = len([*cache.rglob("*.safetensors")])
    assert files == 6  # of dialogues 1, 2, 4, 5, 7, 8
    assert sum(rank["features"]["encoded"] for rank in first) >= files  # validation shows some of them, on both ranks
    assert all(rank["features"]["encoded"] == 0 < rank["features"]["read"] for rank in second)
    check_shares(first)
    check_shares(second)


@pytest.mark.slow
def test_a_rank_without_images_takes_part_in_the_share_of_features_read(backbones, processor, tmp_path):
    """Of nine dialogues one has images, so in each epoch one of the ranks has none."""
    ranks = train(backbones, tmp_path, 2, 1, str(tmp_path / "cache"), "one")
    assert all([] in epoch and max(epoch) for epoch in zip(*(rank["keys"] for rank in ranks), strict=True))
    check_shares(ranks)


def check_shares(ranks: list[dict]) -> None:
    """The share of images whose features were read is that of all ranks together, in every epoch."""
    epochs = [[key for keys in epoch for key in keys] for epoch in zip(*(rank["keys"] for rank in ranks), strict=True)]
    shares = [sum(not key for key in keys) / len(keys) for keys in epochs]
    logged = [row["train/features_read"] for row in ranks[0]["rows"] if "train/features_read" in row]
    assert logged == pytest.approx(shares)
    assert sum("validation/features_read" in row for row in ranks[0]["rows"]) == len(epochs)
