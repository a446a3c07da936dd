"""Killed with SIGKILL at any step or in any moment of a save, a run goes on with the same losses to the last bit."""

import multiprocessing
import random
import signal
from dataclasses import replace

import pytest
import torch
from killed_run import BATCHES, EPOCHS, Plan, losses, rows, train

from visualchat.training.checkpoint_io import STATE

pytestmark = pytest.mark.slow

PROCESSES = multiprocessing.get_context("forkserver")
# What a run needs is imported once for all; modules beside this test would not be found.
PROCESSES.set_forkserver_preload(
    ["visualchat.training.callbacks.checkpoints", "visualchat.training.module", "visualchat.data.datamodule"]
)

ACCUMULATED = {"accumulate_grad_batches": 2, "val_check_interval": 3}


def start(plan: Plan, code: int = -signal.SIGKILL) -> None:
    """One process of the run; it must end as planned: killed with this exit code, or well."""
    process = PROCESSES.Process(target=train, args=(plan,), daemon=False)
    process.start()
    process.join(120)
    killed = plan.kill_after is not None or plan.kill_in_save is not None
    assert process.exitcode == (code if killed else 0)


@pytest.fixture(scope="module")
def plan(backbones, tmp_path_factory) -> Plan:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    plan = Plan(str(backbones.vision), str(backbones.language), folder)
    start(plan)
    assert len(losses(folder)) == BATCHES * EPOCHS
    return plan


@pytest.fixture(scope="module")
def accumulated(plan, tmp_path_factory) -> Plan:
    """An uninterrupted run that steps every second batch and validates in mid-epoch, between two steps."""
    plan = replace(plan, folder=tmp_path_factory.mktemp("accumulated"), trainer=ACCUMULATED)
    start(plan)
    return plan


def same(whole: Plan, folder) -> None:
    """Every batch was seen, and every time with the loss of the whole run; so with the log and the random numbers."""
    expected, found = losses(whole.folder), losses(folder)
    assert len(found) > len(expected)  # some steps were made twice
    assert set(found) == set(expected)
    assert rows(folder) == rows(whole.folder)
    assert str(torch.load(folder / "random.pt")) == str(torch.load(whole.folder / "random.pt"))
    weights = [torch.load(f / "checkpoints" / "last.ckpt" / STATE)["state_dict"] for f in (folder, whole.folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    best = [torch.load(f / "checkpoints" / "best.ckpt" / STATE) for f in (folder, whole.folder)]
    assert best[0]["global_step"] == best[1]["global_step"]


STEPS = sorted(random.Random(0).sample(range(1, BATCHES * EPOCHS), 4))


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step(plan, tmp_path, step):
    start(replace(plan, folder=tmp_path, kill_after=step))
    start(replace(plan, folder=tmp_path))
    same(plan, tmp_path)


def test_killed_twice_in_an_epoch_and_resumed_with_other_workers(plan, tmp_path):
    start(replace(plan, folder=tmp_path, workers=2, kill_after=BATCHES + 3))
    start(replace(plan, folder=tmp_path, kill_after=2))
    assert {epoch for epoch, _, _ in losses(tmp_path)[-2:]} == {"1"}
    start(replace(plan, folder=tmp_path, workers=1))
    same(plan, tmp_path)


def test_killed_while_gradients_accumulate(accumulated, tmp_path):
    """Checkpoints fall between optimizer steps, so none loses a gradient."""
    start(replace(accumulated, folder=tmp_path, kill_after=BATCHES + 5))
    start(replace(accumulated, folder=tmp_path))
    same(accumulated, tmp_path)


@pytest.mark.parametrize("place", ["write", "sync", "previous", "last"])
def test_killed_in_a_save(plan, tmp_path, place):
    start(replace(plan, folder=tmp_path, kill_in_save=(4, place)))
    start(replace(plan, folder=tmp_path))
    same(plan, tmp_path)


def test_two_ranks_with_random_numbers_of_their_own(plan, tmp_path):
    """One rank is killed; the launcher takes the other down and ends with an error."""
    two = replace(plan, trainer={"devices": 2, "strategy": "ddp_fork", "max_epochs": 2})
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    start(replace(two, folder=tmp_path / "whole"))
    start(replace(two, folder=tmp_path / "killed", kill_after=5), code=1)
    start(replace(two, folder=tmp_path / "killed"))
    same(replace(two, folder=tmp_path / "whole"), tmp_path / "killed")
