"""Interrupted at any batch and resumed, a run sees the very batches, and makes the very losses, of one that went on."""

from dataclasses import replace
from functools import partial

import lightning
import pytest
from PIL import Image

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings

SIZE, EPOCHS = 11, 3


def dialogues(count: int = SIZE) -> list[Dialogue]:
    pictures = [Image.new("RGB", (16, 16), (20 * n, 0, 255 - 20 * n)) for n in range(count)]
    return [
        Dialogue((Turn.ask(f"Number {n}?", [pictures[n]] * (n % 3), "yes" * (1 + n % 4)),), id=f"d{n}", system="")
        for n in range(count)
    ]


class Interrupted(Exception):
    """What stops a run in these tests."""


class Watch(lightning.Callback):
    """Keeps each batch's tokens and loss; stops the run at a batch, having saved at the moment named."""

    def __init__(self, stop_at=None, moment="on_train_batch_end", path=None):
        self.seen, self.stop_at, self.moment, self.path = [], stop_at, moment, path

    def _stop(self, trainer, moment, count):
        if self.moment == moment and count == self.stop_at:
            trainer.save_checkpoint(self.path)
            raise Interrupted

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._stop(trainer, "on_train_batch_start", len(self.seen))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch_idx, batch["input_ids"].tolist(), outputs["loss"].item()))
        self._stop(trainer, "on_train_batch_end", len(self.seen))

    def on_validation_end(self, trainer, pl_module):
        self._stop(trainer, "on_validation_end", len(self.seen))

    def on_train_epoch_end(self, trainer, pl_module):
        self._stop(trainer, "on_train_epoch_end", len(self.seen))


def fit(build, processor, folder, watch, *, data=None, resume=None, **trainer):
    run = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[watch],
        **{"limit_val_batches": 0, **trainer},
    )
    settings = {"batch_size": 2, "max_length": 80, **(data or {})}
    module = VisualChatDataModule(processor, dialogues(), dialogues(2), **settings)
    run.fit(VisualChatModule(build, OptimizerSettings(learning_rate=2e-2)), module, ckpt_path=resume)
    return watch.seen


PACKED = {"packing": True, "batch_size": 1}
CASES = {
    "first batch": (1, "on_train_batch_end", {}, {}),
    "mid-epoch": (3, "on_train_batch_end", {}, {}),
    "later epoch": (9, "on_train_batch_end", {}, {}),
    "before a batch": (8, "on_train_batch_start", {}, {}),
    "last batch of an epoch": (6, "on_train_batch_end", {}, {}),
    "epoch's end": (6, "on_train_epoch_end", {}, {}),
    "validation in mid-epoch": (8, "on_validation_end", {}, {"limit_val_batches": 1, "val_check_interval": 2}),
    "validation at the epoch's end": (6, "on_validation_end", {}, {"limit_val_batches": 1}),
    "limited epochs": (6, "on_train_batch_end", {}, {"limit_train_batches": 4}),
    "limited epoch's end": (4, "on_train_epoch_end", {}, {"limit_train_batches": 4}),
    "limited, validation at the end": (
        4,
        "on_validation_end",
        {},
        {"limit_train_batches": 4, "limit_val_batches": 1},
    ),
    "accumulation": (8, "on_train_batch_end", {}, {"accumulate_grad_batches": 2}),
    "packed": (4, "on_train_batch_end", PACKED, {}),
    "grouped by length": (8, "on_train_batch_end", {"group_by_length": True}, {}),
    "packed, before a batch": (7, "on_train_batch_start", PACKED, {}),
}


MID_EPOCH = ("mid-epoch", "later epoch", "packed", "before a batch")  # where workers have fetched in advance
RUNS = [(name, (0, 0)) for name in CASES] + [(name, workers) for name in MID_EPOCH for workers in ((2, 2), (2, 0))]


@pytest.fixture(scope="module")
def uninterrupted(make_model, processor, tmp_path_factory):
    """What a run sees that goes on, of any of the cases; those that differ in where they stop share it."""
    seen = {}

    def run(data, trainer):
        key = str((data, trainer))
        if key not in seen:
            build = partial(make_model, projector_type="linear_norm")
            seen[key] = fit(build, processor, tmp_path_factory.mktemp("whole"), Watch(), data=data, **trainer)
        return seen[key]

    return run


@pytest.mark.parametrize(("name", "workers"), RUNS, ids=lambda value: str(value).strip("()").replace(", ", " to "))
def test_the_rest_is_the_same_to_the_last_bit(make_model, processor, tmp_path, uninterrupted, name, workers):
    stop_at, moment, data, trainer = CASES[name]
    build = partial(make_model, projector_type="linear_norm")
    whole = uninterrupted(data, trainer)
    checkpoint = tmp_path / "interrupted.ckpt"
    stopped = Watch(stop_at, moment, checkpoint)
    with pytest.raises(Interrupted):
        fit(build, processor, tmp_path, stopped, data={**data, "num_workers": workers[0]}, **trainer)
    assert stopped.seen == whole[:stop_at]
    rest = fit(
        build, processor, tmp_path, Watch(), data={**data, "num_workers": workers[1]}, resume=checkpoint, **trainer
    )
    assert [item[2] for item in rest] == [item[2] for item in whole[stop_at:]]  # the batches
    assert [item[3] for item in rest] == [item[3] for item in whole[stop_at:]]  # the losses
    assert [item[:2] for item in rest] == [item[:2] for item in whole[stop_at:]]  # epoch and number


class ReadsTheEstimate(VisualChatModule):
    """Sets up the loaders early, as Lightning #20550 has it."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_that_are_set_up_early_keep_their_place(make_model, processor, tmp_path, monkeypatch, workers):
    monkeypatch.setitem(globals(), "VisualChatModule", ReadsTheEstimate)
    whole = fit(make_model, processor, tmp_path, Watch())
    stopped = Watch(9, path=tmp_path / "interrupted.ckpt")
    with pytest.raises(Interrupted):
        fit(make_model, processor, tmp_path, stopped)
    data = {"num_workers": workers}
    rest = fit(make_model, processor, tmp_path, Watch(), data=data, resume=tmp_path / "interrupted.ckpt")
    assert rest == whole[9:]


def interrupted_at(processor, make_model, folder, batch):
    with pytest.raises(Interrupted):
        fit(make_model, processor, folder, Watch(batch, path=folder / "at.ckpt"))
    return folder / "at.ckpt"


def test_other_settings_cannot_go_on_in_mid_epoch(make_model, processor, tmp_path):
    checkpoint = interrupted_at(processor, make_model, tmp_path, 4)
    message = r"ended at batch 4 of epoch 0, which other settings cannot resume: batch_size was 2, now 3; resume"
    with pytest.raises(ValueError, match=message):
        fit(make_model, processor, tmp_path, Watch(), data={"batch_size": 3}, resume=checkpoint)


ORIGINAL = dialogues


def edited(how: str) -> list[Dialogue]:
    """As many dialogues as before, one of them another."""
    found = ORIGINAL()
    (turn,) = found[-1].turns
    if how == "order":
        return found[::-1]
    if how == "answer":
        turn = replace(turn, answer=turn.answer[::-1])
    elif how == "picture":
        other = Image.new("RGB", (16, 16), (0, 0, 1))
        turn = replace(turn, content=tuple(other if isinstance(c, Image.Image) else c for c in turn.content))
    return [*found[:-1], replace(found[-1], turns=(turn,), system="Be brief." if how == "system" else "")]


@pytest.mark.parametrize("how", ["order", "answer", "picture", "system"])
def test_other_rows_cannot_go_on_in_mid_epoch(make_model, processor, tmp_path, monkeypatch, caplog, how):
    """The same number of rows, with the same names; from the end of an epoch they may, and that is said."""
    middle, end = (interrupted_at(processor, make_model, tmp_path / name, n) for name, n in (("a", 4), ("b", 6)))
    monkeypatch.setitem(globals(), "dialogues", lambda count=SIZE: edited(how)[:count])
    with pytest.raises(ValueError, match=r"cannot resume: the content of the training rows; resume with the old"):
        fit(make_model, processor, tmp_path, Watch(), resume=middle)
    assert fit(make_model, processor, tmp_path, Watch(), resume=end)
    assert "other data than before, from epoch 1 on: the content of the training rows" in caplog.text


def test_other_settings_can_go_on_between_epochs(make_model, processor, tmp_path):
    checkpoint = interrupted_at(processor, make_model, tmp_path, 6)
    rest = fit(make_model, processor, tmp_path, Watch(), data={"batch_size": 4}, resume=checkpoint)
    assert {item[0] for item in rest} == {1, 2}


def test_a_second_fit_begins_at_the_start(make_model, processor, tmp_path):
    """The datamodule's place belongs to a checkpoint, not to the object."""
    first = fit(make_model, processor, tmp_path, Watch())
    assert fit(make_model, processor, tmp_path, Watch()) == first
