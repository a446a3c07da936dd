"""A run ends at the first loss that is not finite, and after a signal; nothing that is not finite is ever saved."""

import csv
import math
import os
import signal
from functools import partial

import lightning
import pytest
import torch
from killed_run import dialogues
from lightning.pytorch.plugins import MixedPrecision

from visualchat.data.datamodule import VisualChatDataModule, outlive_signals
from visualchat.training.callbacks.checkpoints import Checkpoints
from visualchat.training.checkpoint_io import STATE, CheckpointFolders, manifest
from visualchat.training.loggers import ContinuedCSVLogger
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings
from visualchat.training.stopping import RunStopped, Signals


class Spoilt(VisualChatModule):
    """Whose loss becomes a given value at a batch of training or validation, or whose parameters do."""

    training_at = validation_at = parameters_at = None
    value = float("nan")

    def training_step(self, batch, batch_idx):
        found = super().training_step(batch, batch_idx)
        if self.trainer.fit_loop.total_batch_idx == self.training_at:
            found["loss"] = found["loss"] + self.value
        return found

    def on_before_optimizer_step(self, optimizer):
        if self.trainer.global_step == self.parameters_at:
            self.model.multi_modal_projector.weight.grad[0, 0] = self.value

    def validation_step(self, batch, batch_idx):
        spoils = self.model.register_forward_hook(
            lambda module, inputs, out: setattr(out, "loss", out.loss + self.value)
        )
        if batch_idx != self.validation_at:
            spoils.remove()
        found = super().validation_step(batch, batch_idx)
        spoils.remove()
        return found


def fit(
    make_model,
    processor,
    folder,
    callbacks=(),
    plugins=(),
    resume=None,
    trainer=None,
    optimizer=None,
    logger=False,
    **spoilt,
):
    module = Spoilt(partial(make_model), OptimizerSettings(**{"learning_rate": 2e-2, **(optimizer or {})}))
    for name, value in spoilt.items():
        setattr(module, name, value)
    run = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=logger,
        callbacks=[*callbacks, Checkpoints(folder / "checkpoints", "validation/loss", "min", every_n_steps=2)],
        plugins=[CheckpointFolders(), *plugins],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 2, **(trainer or {})},
    )
    data = VisualChatDataModule(processor, dialogues(6), dialogues(3), batch_size=2, max_length=80)
    run.fit(module, data, ckpt_path=resume)
    return run


def assert_saved(folder, step):
    last = folder / "checkpoints" / "last.ckpt"
    assert manifest(last)["step"] == step
    for path in last.parent.iterdir():
        assert all(value.isfinite().all() for value in torch.load(path / STATE)["state_dict"].values())


CASES = {
    "training": (
        {"training_at": 4},
        {},
        r"the training loss is nan in step 5, learning rate 0.0\d+, on the rows d\d \(dialogue \d\), d\d \(",
        3,
    ),
    "infinite": (
        {"training_at": 2, "value": float("inf")},
        {},
        r"the training loss is inf in step 3, learning rate 0.0\d+, on the rows d\d \(dialogue \d\), d\d \(",
        2,
    ),
    "between two steps": ({"training_at": 3}, {"accumulate_grad_batches": 2}, r"training loss is nan in step 2, ", 2),
    "validation": (
        {"validation_at": 1},
        {},
        r"the validation loss is nan after step 3, on the rows d2 \(dialogue 2\)\n",
        2,
    ),
    "parameters": (
        {"parameters_at": 4},
        {"gradient_clip_val": None},
        r"after step 5 trained parameters are not finite, and are not saved: multi_modal_projector.weight$",
        3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_ends_at_the_first_loss_that_is_not_finite(make_model, processor, tmp_path, case):
    spoilt, trainer, message, step = CASES[case]
    with pytest.raises(RunStopped, match=message) as stopped:
        fit(make_model, processor, tmp_path, trainer=trainer, **spoilt)
    assert stopped.value.code == 1
    assert stopped.value.instead == {"optimizer.learning_rate": "0.01"}
    assert_saved(tmp_path, step)


def test_a_resumed_run_takes_the_rate_that_it_is_given(make_model, processor, tmp_path):
    """Also after a rate that was too high; the schedule goes on where it was."""
    settings = {"betas": (0.5, 0.9), "weight_decay": 0.125}
    with pytest.raises(RunStopped):
        fit(make_model, processor, tmp_path, training_at=4)
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module._rates)

    last = tmp_path / "checkpoints" / "last.ckpt"
    run = fit(make_model, processor, tmp_path, [Watch()], resume=last, optimizer={"learning_rate": 1e-2, **settings})
    (group,) = {tuple(group[name] for name in settings) for group in run.optimizers[0].param_groups}
    assert group == tuple(settings.values())
    expected = [1e-2 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 5)) for step in (3, 4, 5)]
    assert seen == [pytest.approx([rate, rate]) for rate in expected]


def test_an_overflow_of_scaled_gradients_is_skipped(make_model, processor, tmp_path):
    """As fp16 training begins: the scale is too large, steps are left out until it is not; each loss is finite."""

    class Skipped(lightning.Callback):
        count = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.count += any(not p.grad.isfinite().all() for p in pl_module.parameters() if p.grad is not None)

    skipped = Skipped()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-60)
    fit(make_model, processor, tmp_path, [skipped], [MixedPrecision("16-mixed", "cpu", scaler)])
    assert 0 < skipped.count < 6
    assert_saved(tmp_path, 6)


class Sends(lightning.Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, number, at):
        self.number, self.at = number, at

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.fit_loop.total_batch_idx == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGUSR1, 138, "SIGUSR1")],
)
def test_a_signal_ends_the_run_after_the_step_at_hand(make_model, processor, tmp_path, number, code, name):
    before = signal.getsignal(number)
    with pytest.raises(RunStopped, match=f"stopped by {name} after step 4$") as stopped:
        fit(make_model, processor, tmp_path, [Sends(number, 3)])
    assert stopped.value.code == code
    assert_saved(tmp_path, 4)
    signal.signal(number, before)
    run = fit(make_model, processor, tmp_path, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert run.global_step == 6
    assert signal.getsignal(number) == before


class SendsInValidation(lightning.Callback):
    """Sends this process a signal in a batch of validation, and notes the batches that are validated."""

    def __init__(self, at=None, batch=0):
        self.at, self.batch, self.seen = at, batch, []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append((trainer.global_step, batch_idx))
        if (trainer.global_step, batch_idx) == (self.at, self.batch):
            os.kill(os.getpid(), signal.SIGTERM)


def logged(folder):
    """The rows of a run's log by step, without times."""
    with (folder / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: (int(row["step"]), *row))


@pytest.mark.parametrize("at", [2, 3, 6])
def test_a_signal_ends_a_validation_which_the_run_that_goes_on_does_again(make_model, processor, tmp_path, at):
    """In the middle of an epoch, at its end and at the run's: the same logs and weights as of a run that was left."""
    twice = {"val_check_interval": 1 if at == 2 else None, "log_every_n_steps": 1}

    def run(name, callback, resume=None):
        logger = ContinuedCSVLogger(tmp_path, name=name, version="")
        return fit(make_model, processor, tmp_path / name, [callback], resume=resume, trainer=twice, logger=logger)

    whole = SendsInValidation()
    expected = run("whole", whole)
    ended = SendsInValidation(at)
    with pytest.raises(RunStopped, match=f"stopped by SIGTERM after step {at}$") as stopped:
        run("mine", ended)
    assert stopped.value.code == 143
    assert ended.seen == [seen for seen in whole.seen if seen <= (at, 0)]
    assert_saved(tmp_path / "mine", at)
    again = SendsInValidation()
    found = run("mine", again, tmp_path / "mine" / "checkpoints" / "last.ckpt")
    assert again.seen == [seen for seen in whole.seen if seen[0] >= at]
    assert found.global_step == expected.global_step
    assert logged(tmp_path / "mine") == logged(tmp_path / "whole")
    assert found.checkpoint_callback.best == expected.checkpoint_callback.best
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt" / STATE)["state_dict"] for name in ("mine", "whole")]
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=0, atol=0)


def test_a_signal_waits_for_gradients_that_accumulate(make_model, processor, tmp_path):
    with pytest.raises(RunStopped, match=r"stopped by SIGTERM after step 2$"):
        fit(make_model, processor, tmp_path, [Sends(signal.SIGTERM, 2)], trainer={"accumulate_grad_batches": 2})
    assert_saved(tmp_path, 2)


def test_the_second_ctrl_c_and_any_signal_before_training_end_the_process_at_once(monkeypatch):
    """Other ranks that this process started are ended with it."""
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    signals = Signals()
    signals.at_once = lambda: ends.append("ranks")
    signals.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends == ["ranks", 143]
        ends.clear()
        signals.gentle = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher sends it after Ctrl-C
        assert (ends, signals.received) == ([], signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert ends == ["ranks", 130]
    finally:
        signals.give_back()


def test_data_workers_outlive_a_signal_to_the_whole_group():
    """The first SIGTERM is not for them; the second, which torch sends to a worker that hangs, ends them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        outlive_signals(0)
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
