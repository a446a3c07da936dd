"""A run that is interrupted in every way says what to type, and goes on, when that is typed, with equal losses.

In CI each cause and each kind of strategy comes at least twice; all of them with each other:
VISUALCHAT_MATRIX=whole make test-slow ARGS=tests/acceptance/test_interrupted.py
"""

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from commands import LIMIT, bash, history, run, started

pytestmark = pytest.mark.slow

HERE = str(Path(__file__).parent)

ONE = [
    "visualchat-train",
    "hydra.run.dir=mine",
    "trainer.accelerator=cpu",
    "data.train.size=16",
    "data.validation.size=4",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "callbacks.samples=null",
    "callbacks.parts_table=null",
    "callbacks.checkpoint.every_n_steps=2",
    "+callbacks.mischief._target_=mischief.Mischief",
    "evaluation=none",
    "save=light",
]
STEPS, STEPS_OF_AN_EPOCH = 16, 4
LOWER = " optimizer.learning_rate=0.006 optimizer.embedding_learning_rate=0.001"
CODES = {"validation": 143, "kill": -9, "sigterm": 143, "ctrl_c": 130, "full disk": 1, "nan": 1}
SAID = {
    "kill": "",
    "validation": r"stopped by SIGTERM after step \d+\n",
    "sigterm": r"stopped by SIGTERM after step \d+\n",
    "ctrl_c": r"stopped by Ctrl-C after step \d+\n",
    "full disk": r"step \d+ could not be saved in .*: \[Errno 27\] File too large\n",
    "nan": r"the training loss is nan in step \d+, learning rate [\d.e+, -]+, on the rows tiny-train-0-\d+ \(.*\n",
}
CAUSES = {
    "one": ("full disk", "ctrl_c"),
    "ddp": ("nan", "sigterm"),
    "zero2": ("full disk", "kill"),
    "zero3": ("ctrl_c", "nan", "validation"),
    "fsdp2": ("sigterm", "kill", "validation"),
}
WHOLE = os.environ.get("VISUALCHAT_MATRIX") == "whole"


def of(family: str) -> list[str]:
    ranks = ["data.batch_size=4"] if family == "one" else ["data.batch_size=2", "trainer.devices=2"]
    return [*ONE, *ranks, *([] if family == "one" else [f"trainer/strategy={family}"])]


def step_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / "manifest.json").read_text())["step"]


@pytest.mark.parametrize("family", CAUSES)
def test_interrupted_runs_go_on_as_they_are_told_to(family, tmp_path):
    """One run after the other is interrupted by one cause after the other, the last is let to its end."""
    whole, mine = tmp_path / "whole", tmp_path / "mine"
    for folder in (whole, mine):
        folder.mkdir()
    run(whole, *of(family), PYTHONPATH=HERE).ok()
    expected = history(whole / "mine")
    assert len(expected) == STEPS
    causes = tuple(CODES) if WHOLE else CAUSES[family]
    typed = " ".join(of(family))
    at = 1
    for cause in causes:
        at += 2
        if cause == "validation":  # at an epoch's end
            at += -at % STEPS_OF_AN_EPOCH
        done = bash(mine, f"exec {typed}", PYTHONPATH=HERE, MISCHIEF=f"{cause}:{at}")
        assert done.code == CODES[cause], done
        assert "the run's folder: mine/" in done.out, done
        assert re.search(SAID[cause], done.err), done
        saved = step_of(mine / "mine/checkpoints/last.ckpt")
        if cause in ("sigterm", "ctrl_c"):
            assert saved == at + 1, done
        elif cause == "validation":
            assert saved == at, done
        else:
            assert at - 2 <= saved <= at, done
        if cause == "kill":
            typed = " ".join([*of(family), "resume=auto"])
        else:
            assert f"the last checkpoint is of step {saved}: mine/checkpoints/last.ckpt\n" in done.err, done
            (typed,) = re.findall(r"^resume with: (.*)$", done.err, re.MULTILINE)
        if cause == "nan":  # the losses are to be those of a run that had none, so the rates must be
            assert LOWER in typed, done
            typed = typed.replace(LOWER, "")
    done = bash(mine, f"exec {typed}", PYTHONPATH=HERE).ok()
    assert f"resuming from mine/checkpoints/last.ckpt at step {saved}" in done.out, done
    assert history(mine / "mine") == expected
    assert (mine / "mine/light/light.json").is_file()


PATIENCE = "rank_timeout=10"


def test_a_silent_rank_ends_the_run_with_words(tmp_path):
    """The second rank is stopped; the first ends, says what to type, and leaves no process behind."""
    line = [*of("ddp"), PATIENCE]
    done = run(tmp_path, *line, PYTHONPATH=HERE, MISCHIEF="silent 1:3")
    assert done.code == 1, done
    assert "rank 0 waited in vain for another of the 2 processes" in done.err, done
    saved = step_of(tmp_path / "mine/checkpoints/last.ckpt")
    assert 1 <= saved <= 3
    assert f"the last checkpoint is of step {saved}: mine/checkpoints/last.ckpt\n" in done.err, done
    assert re.search("^resume with: visualchat-train .* resume=auto$", done.err, re.MULTILINE), done


def test_where_the_first_rank_is_silent_another_ends_the_run(tmp_path):
    """It says so; the first, should it wake up, ends as well."""
    with started(tmp_path, *of("ddp"), PATIENCE, PYTHONPATH=HERE, MISCHIEF="silent 0:3") as process:
        late = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        assert any("rank 1 waited in vain for another of the 2 processes" in line for line in process.stderr)
        late.cancel()
        os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=LIMIT)
        assert process.returncode != 0


def test_ranks_wait_for_a_slow_start_and_for_no_evaluation(tmp_path):
    """Each longer than `rank_timeout`: it counts while they train, and when the first evaluates the others are gone."""
    scored = ["evaluation=tiny", "evaluation.dialogues.seen.size=4", "evaluation.dialogues.unseen.size=4"]
    line = [*(word for word in of("fsdp2") if not word.startswith("evaluation=")), *scored, "evaluation.captioned=null"]
    done = run(tmp_path, *line, "rank_timeout=8", PYTHONPATH=HERE, MISCHIEF="slow:10").ok()
    assert "the first of 2 processes evaluates, the others are done\n" in done.out, done
    assert json.loads((tmp_path / "mine/metrics.json").read_text())["train/steps"] == STEPS
