"""Which checkpoint is taken, what becomes of damaged ones, and that nothing of another run is written over."""

import errno
import hashlib
import logging
import math
import os
import random
import shutil
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from killed_run import dialogues
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.training.callbacks.checkpoints import Checkpoints, random_state, set_random_state
from visualchat.training.callbacks.metrics import RunMetrics
from visualchat.training.checkpoint_io import MANIFEST, STATE, CheckpointFolders, damage, manifest
from visualchat.training.loggers import ContinuedCSVLogger, CSVRows, forget_from
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings
from visualchat.training.resume import find_checkpoint
from visualchat.training.stopping import RunStopped


def write(path, step=1):
    CheckpointFolders().save_checkpoint({"global_step": step, "values": torch.arange(5000)}, path)
    return path


def cut_short(path):
    file = path / STATE
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwritten(path):
    """One byte in the middle of a tensor, as after a power cut."""
    data = bytearray((path / STATE).read_bytes())
    data[len(data) // 2] ^= 255
    (path / STATE).write_bytes(data)


def zeroed(path):
    """As some file systems leave a file after a power cut: of the right size, without its content."""
    (path / STATE).write_bytes(bytes((path / STATE).stat().st_size))


def lost(path):
    (path / STATE).unlink()


def unsealed(path):
    (path / MANIFEST).unlink()


def garbled(path):
    (path / MANIFEST).write_text('{"files": [')


def foreign(path):
    """A sound zip file that is no checkpoint."""
    shutil.rmtree(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "no checkpoint")


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "checkpoints" / "last.ckpt", 2)
    write(tmp_path / "checkpoints" / "previous.ckpt", 1)
    return tmp_path


def test_a_run_goes_on_from_its_newest(run, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    assert damage(last) is None
    assert find_checkpoint("auto", run) == last
    assert find_checkpoint(run, tmp_path / "other") == last
    assert find_checkpoint(str(run / "checkpoints"), tmp_path / "other") == last
    assert find_checkpoint(run / "checkpoints" / "previous.ckpt", run).name == "previous.ckpt"
    assert find_checkpoint(None, run) is None


@pytest.mark.parametrize("spoil", [cut_short, overwritten, zeroed, lost, unsealed, garbled, foreign])
def test_a_damaged_one_gives_way_to_the_one_before(run, spoil, caplog):
    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    spoil(last)
    assert damage(last) is not None
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("auto", run) == previous
    assert f"{last} is not usable" in caplog.text
    assert f"resuming from {previous} instead" in caplog.text
    with pytest.raises(ValueError, match="name the run's folder"):
        find_checkpoint(last, run)
    spoil(previous)
    with pytest.raises(ValueError, match=rf"{last} is not usable.*{previous} is not usable"):
        find_checkpoint("auto", run)


def test_a_kill_between_the_two_renames_costs_nothing(run):
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / "last.part")
    assert find_checkpoint("auto", run).name == "previous.ckpt"


def test_nothing_there(tmp_path):
    assert find_checkpoint("auto", tmp_path / "new") is None
    with pytest.raises(ValueError, match="resume=nowhere: there is no such checkpoint or folder"):
        find_checkpoint("nowhere", tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint there, expected last.ckpt in it or in its checkpoints/"):
        find_checkpoint(tmp_path, tmp_path)


def fit(make_model, processor, folder, *, resume=None, loggers=(), more=(), **trainer):
    run = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=list(loggers),
        callbacks=[*more, RunMetrics(), Checkpoints(folder / "checkpoints", "validation/loss", "min", every_n_steps=2)],
        plugins=[CheckpointFolders()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **{"max_epochs": 1, **trainer},
    )
    data = VisualChatDataModule(processor, dialogues(6), dialogues(3), batch_size=2, max_length=80)
    module = VisualChatModule(partial(make_model), OptimizerSettings(learning_rate=2e-2))
    run.fit(module, data, ckpt_path=resume)
    return run


def step_of(path):
    return torch.load(path / STATE, weights_only=True)["global_step"]


def test_last_previous_and_best_are_kept(make_model, processor, tmp_path):
    """The last is saved whether or not it is the best."""
    fit(make_model, processor, tmp_path, max_epochs=2)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert (step_of(folder / "previous.ckpt"), step_of(folder / "last.ckpt")) == (5, 6)
    assert step_of(folder / "best.ckpt") in (3, 6)


def test_a_finished_run_goes_on_for_longer(make_model, processor, tmp_path):
    fit(make_model, processor, tmp_path)
    longer = fit(make_model, processor, tmp_path, max_epochs=2, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert longer.global_step == 6


class Seen(lightning.Callback):
    """Keeps each batch's tokens."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, batch["input_ids"].tolist()))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_epoch_that_max_steps_cut_short_goes_on(make_model, processor, tmp_path, steps):
    whole, first, rest = Seen(), Seen(), Seen()
    fit(make_model, processor, tmp_path / "whole", more=[whole], max_epochs=2)
    fit(make_model, processor, tmp_path, more=[first], max_epochs=2, max_steps=steps)
    longer = fit(make_model, processor, tmp_path, more=[rest], max_epochs=2, resume=tmp_path / "checkpoints/last.ckpt")
    assert longer.global_step == 6
    assert first.batches + rest.batches == whole.batches


def test_a_checkpoint_is_synced_sealed_and_only_then_named(tmp_path, monkeypatch):
    """Every file and folder of it is on the disk before the name, the manifest last; nothing goes elsewhere."""
    happened = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda d: happened.append(str(Path(f"/proc/self/fd/{d}").readlink())) or fsync(d))
    monkeypatch.setattr(Path, "rename", lambda self, to: happened.append(f"{self} -> {to}") or rename(self, to))
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    path = write(tmp_path / "last.ckpt")
    part = tmp_path / "last.part"
    assert sorted(happened[:3]) == sorted(map(str, (part, part / STATE, part / MANIFEST)))
    assert happened[3:] == [f"{part} -> {path}", str(tmp_path)]
    assert sorted(file.name for file in path.iterdir()) == [MANIFEST, STATE]
    noted = manifest(path)
    content = (path / STATE).read_bytes()
    assert noted["files"] == {STATE: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert noted["step"] == 1


class Full:
    """A file on a disk that takes only so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(make_model, processor, tmp_path, monkeypatch):
    fit(make_model, processor, tmp_path, max_steps=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    kept = {file.name: file.read_bytes() for file in last.iterdir()}
    opened = Path.open

    def open_on_a_full_disk(self, mode="r", *rest, **named):
        file = opened(self, mode, *rest, **named)
        return Full(file, 20_000) if "w" in mode and self.name == STATE else file

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    with pytest.raises(RunStopped, match=r"step 3 could not be saved in .*/checkpoints: .* No space left on device$"):
        fit(make_model, processor, tmp_path, max_epochs=2, resume=last)
    assert {file.name: file.read_bytes() for file in last.iterdir()} == kept
    assert not [*last.parent.glob("*.part")]  # its room is free again


def test_a_checkpoint_that_could_run_code_is_not_loaded(make_model, processor, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    fit(make_model, processor, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last / STATE)
    CheckpointFolders().save_checkpoint({**checkpoint, "extra": Touch()}, last)  # with a manifest that is right
    assert damage(last) is None
    with pytest.raises(ValueError, match=r"holds more than numbers \(posix.mkdir\) and so could run code"):
        fit(make_model, processor, tmp_path, max_epochs=2, resume=last)
    assert not (tmp_path / "was here").exists()


def test_a_fresh_run_does_not_write_over_another(make_model, processor, tmp_path):
    fit(make_model, processor, tmp_path)
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run: resume it with resume=auto"):
        fit(make_model, processor, tmp_path)


def test_a_metric_that_is_not_there_is_named(make_model, processor, tmp_path, monkeypatch):
    def unlogged(self, batch, batch_idx):
        stats = batch["stats"]
        return {"answer_losses": torch.zeros(len(stats.token_source)), "exact": [True] * len(stats.answer_source)}

    monkeypatch.setattr(VisualChatModule, "validation_step", unlogged)
    with pytest.raises(ValueError, match="chosen by 'validation/loss', which is not among"):
        fit(make_model, processor, tmp_path)


def test_the_best_is_the_best_number(tmp_path):
    for mode, scores, expected in (("min", [3.0, float("nan"), 2.0, 4.0], 2.0), ("max", [float("nan"), 3.0, 2.0], 3.0)):
        keep = Checkpoints(tmp_path, "score", mode)
        due = []
        for score in scores:
            trainer = lightning.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
            trainer.state.fn = TrainerFn.FITTING
            trainer.callback_metrics["score"] = torch.tensor(score)
            keep._best_is_due = False
            keep.on_validation_end(trainer, None)
            due.append(keep._best_is_due)
        assert keep.best == expected
        assert due == [not math.isnan(s) and s in (scores[0], expected) for s in scores]


@pytest.mark.parametrize("settings", [{"mode": "best"}, {"every_n_steps": 0}])
def test_settings_that_make_no_sense(tmp_path, settings):
    with pytest.raises(ValueError, match="expected mode max or min and every_n_steps of 1 or more"):
        Checkpoints(tmp_path, "validation/loss", **settings)


def test_random_numbers_go_on():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random_state()
    expected = draw()
    assert draw() != expected
    set_random_state(state)
    assert draw() == expected


def test_rows_are_kept_dropped_and_never_cut(tmp_path):
    rows = CSVRows(tmp_path)
    for step in range(3):
        rows.log_metrics({"loss": torch.tensor(step / 2)}, step)
    rows.save()
    rows.log_metrics({"accuracy": 1.0}, 2)
    rows.save()
    with rows.path.open("a") as file:
        file.write("0.5,0.5,1")  # of "...,10": the writing was cut short
    again = CSVRows(tmp_path)
    again.forget_from(2)
    again.log_metrics({"loss": 7.0}, 2)
    again.save()
    lines = ["accuracy,loss,step", ",0.0,0", ",0.5,1", ",7.0,2"]
    assert rows.path.read_text().splitlines() == lines
    assert again.metrics == []


def test_tensorboard_shows_every_step_once(tmp_path):
    for value, first in ((1.0, 0), (2.0, 3)):
        logger = TensorBoardLogger(tmp_path, name="", version="")
        forget_from([logger], first)
        for step in range(first, 5):
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


def test_the_log_of_a_run_that_goes_on_is_one(make_model, processor, tmp_path):
    logger = partial(ContinuedCSVLogger, tmp_path, name="logs", version="csv")
    fit(make_model, processor, tmp_path, loggers=[logger()])
    fit(
        make_model,
        processor,
        tmp_path,
        max_epochs=2,
        resume=tmp_path / "checkpoints" / "last.ckpt",
        loggers=[logger()],
    )
    text = (tmp_path / "logs" / "csv" / "metrics.csv").read_text()
    header, *lines = text.splitlines()
    steps = [int(line.split(",")[header.split(",").index("step")]) for line in lines]
    assert sorted(set(steps)) == list(range(6))
