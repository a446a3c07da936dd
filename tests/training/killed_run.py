"""A small run that a test starts in a process of its own, and that can be made to kill itself at any place."""

import csv
import multiprocessing
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import dropout

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.training import checkpoint_io
from visualchat.training.callbacks import checkpoints
from visualchat.training.callbacks.checkpoints import Checkpoints
from visualchat.training.callbacks.metrics import RunMetrics
from visualchat.training.checkpoint_io import CheckpointFolders
from visualchat.training.loggers import ContinuedCSVLogger
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings
from visualchat.training.resume import find_checkpoint


@dataclass(frozen=True)
class Plan:
    """What a run does, beside training in `folder`.

    Attributes:
        kill_after: Die after this many batches of this process.
        kill_in_save: (which save of this process, at what in it): `write`, `sync`, `previous`, `last`.
    """

    vision: str
    language: str
    folder: Path
    workers: int = 0
    kill_after: int | None = None
    kill_in_save: tuple[int, str] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


BATCHES, EPOCHS = 6, 3


def dialogues(count: int) -> list[Dialogue]:
    pictures = [Image.new("RGB", (16, 16), (20 * n, 0, 255 - 20 * n)) for n in range(count)]
    return [
        Dialogue((Turn.ask(f"Number {n}?", [pictures[n]] * (n % 3), "yes" * (1 + n % 4)),), id=f"d{n}", system="")
        for n in range(count)
    ]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Watch(lightning.Callback):
    """Writes each loss to the last bit, and dies when it is time."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.batches = plan, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        line = f"{trainer.current_epoch} {batch_idx} {outputs['loss'].item().hex()}\n"
        with (self.plan.folder / "losses.txt").open("a") as file:
            file.write(line)
        self.batches += 1
        if self.batches == self.plan.kill_after:
            die()


def with_random_numbers(plan: Plan) -> VisualChatForConditionalGeneration:
    """A model whose training draws from torch's, numpy's and Python's generators."""
    torch.manual_seed(0)
    model = VisualChatForConditionalGeneration.from_backbones(
        plan.vision, plan.language, image_seq_length=4, vision_feature_select_strategy="default"
    )

    def shake(module, inputs, output):
        if module.training:
            return dropout(output, 0.1) * (1 + 0.01 * random.random() + 0.01 * np.random.rand())

    model.multi_modal_projector.register_forward_hook(shake)
    return model


def arm(number: int, place: str) -> None:
    """Have the process die in its save of that number (from 1)."""
    saves = 0
    save = Checkpoints._save

    def counted(self, trainer, path, previous=None):
        nonlocal saves
        saves += 1
        if saves == number:
            load(place)
        save(self, trainer, path, previous)

    def load(place: str) -> None:
        if place == "write":

            def half(value, path):
                path.write_bytes(b"half a checkpoint")
                die()

            checkpoint_io.write = half
        elif place == "sync":
            checkpoint_io.sync = lambda path: die()
        else:
            move = checkpoint_io.move

            def dying(source, target):
                if target.stem == place:
                    die()
                move(source, target)

            checkpoint_io.move = dying

    Checkpoints._save = counted


def train(plan: Plan) -> None:
    """Go on in the folder as far as the plan lets it."""
    multiprocessing.set_start_method("fork", force=True)  # of data workers: Linux' default in a main process
    torch.set_num_threads(1)
    lightning.seed_everything(7, verbose=False)
    if plan.kill_in_save:
        arm(*plan.kill_in_save)
    keep = Checkpoints(plan.folder / "checkpoints", monitor="validation/loss", mode="min", every_n_steps=2)
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=plan.folder,
        logger=ContinuedCSVLogger(plan.folder, name="logs", version="csv"),
        callbacks=[Watch(plan), RunMetrics(), keep],
        plugins=[CheckpointFolders()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **{"max_epochs": EPOCHS, **plan.trainer},
    )
    processor = VisualChatProcessor.from_backbones(plan.vision, plan.language, image_seq_length=4)
    data = VisualChatDataModule(
        processor, dialogues(2 * BATCHES - 1), dialogues(3), batch_size=2, max_length=80, num_workers=plan.workers
    )
    module = VisualChatModule(lambda: with_random_numbers(plan), OptimizerSettings(learning_rate=2e-2))
    trainer.fit(module, data, ckpt_path=find_checkpoint("auto", plan.folder))
    torch.save(checkpoints.random_state(), plan.folder / "random.pt")


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """(epoch, batch, loss) of each batch of each process, in order."""
    return [tuple(line.split()) for line in (folder / "losses.txt").read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    """The log, without the token count of an epoch, which Lightning begins anew in a process."""
    with (folder / "logs" / "csv" / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith(("speed/", "memory/"))}
            for row in csv.DictReader(file)
        ]
