"""A rank that is stopped: the others end after the timeout, say so, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from commands import LIMIT, SHORT, started

from visualchat.training.silence import patience

PATIENCE = 60
"""Seconds; the second process must have started by then, on a busy machine too."""


def children(parent: int) -> list[int]:
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in done.stdout.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == parent and "visualchat-train" in row[2]]


@pytest.mark.slow
def test_a_stopped_rank_ends_the_run(tmp_path):
    words = ["visualchat-train", *SHORT, "trainer.devices=2", "trainer/strategy=ddp", "trainer.max_epochs=10000"]
    with started(tmp_path, *words, f"rank_timeout={PATIENCE}", "hydra.run.dir=run", "logger=csv") as process:
        end = time.monotonic() + LIMIT
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert process.poll() is None, process.communicate()[1][-4000:]
        (other,) = children(process.pid)
        os.kill(other, signal.SIGSTOP)
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 1, errors[-4000:]
        assert "rank 0 waited in vain for another of the 2 processes" in errors
        assert "go on with: visualchat-train" in errors
        assert "hydra.run.dir=run resume=auto" in errors
        with pytest.raises(ProcessLookupError):
            os.kill(other, 0)


@pytest.mark.parametrize("seconds", [0, -3])
def test_a_timeout_is_greater_than_nothing(seconds):
    with pytest.raises(ValueError, match=f"rank_timeout={seconds}, expected seconds greater than 0"):
        patience(seconds)
