"""Two processes: every dialogue once an epoch, and the very steps that one process makes of the joint batches."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")


def train(backbones, folder: Path, ranks: int, batch_size: int) -> list[dict]:
    arguments = [str(backbones.vision), str(backbones.language), str(folder), str(ranks), str(batch_size)]
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
