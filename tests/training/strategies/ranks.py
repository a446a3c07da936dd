"""Run by tests in processes of its own: trains the fixed dialogues on some ranks, keeps what each saw and logged.

python ranks.py VISION LANGUAGE FOLDER RANKS BATCH_SIZE [FEATURE_CACHE [all|one]]

The last says how many of the dialogues have images.
"""

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from visualchat.data.batching.lengths import token_lengths
from visualchat.data.blend.mixture import Mixture
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.training.callbacks.metrics import RunMetrics
from visualchat.training.callbacks.samples import SampleDialogues
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings


def dialogues(shown: str = "all") -> list[Dialogue]:
    """Nine with 0 to 2 images, or images in one alone, and answers of quite different lengths."""
    pictures = [Image.new("RGB", (16, 16), (25 * n, 0, 250 - 25 * n)) for n in range(9)]
    return [
        Dialogue(
            (
                Turn.ask(
                    f"Number {n}?",
                    [pictures[n]] * (n % 3 if shown == "all" or n == 8 else 0),
                    "yes " * (1 + 2 * (n % 4)),
                ),
            ),
            id=f"d{n}",
        )
        for n in range(9)
    ]


def mixture(shown: str) -> Mixture:
    """The same dialogues as two sources, of which the second is in few batches."""
    return Mixture({"most": dialogues(shown)[:7], "few": dialogues(shown)[7:]})


class Rows(CSVLogger):
    """Keeps what this rank would log, whichever it is."""

    def __init__(self, folder: str):
        super().__init__(folder)
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **metrics})


class Keep(lightning.Callback):
    def __init__(self, packed):
        self.questions, self.keys, self.packed = [], [], packed

    def on_train_start(self, trainer, pl_module):
        self.lengths = self.packed.pack().lengths
        try:
            token_lengths(self.packed.train, self.packed.processor, 203)  # too short for all but dialogue 0
        except ValueError as error:
            self.refusal = str(error)

    def on_train_epoch_start(self, trainer, pl_module):
        self.keys.append([])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.keys[-1] += batch.get("feature_keys", [])
        self.questions += [row[batch["attention_mask"][n] > 0].tolist() for n, row in enumerate(batch["input_ids"])]


def main(
    vision: str, language: str, folder: str, ranks: str, batch_size: str, cache: str | None = None, shown: str = "all"
) -> None:
    def build():
        torch.manual_seed(0)
        return VisualChatForConditionalGeneration.from_backbones(
            vision, language, image_seq_length=4, vision_feature_select_strategy="default", dtype=torch.float64
        )

    torch.set_num_threads(1)
    processor = VisualChatProcessor.from_backbones(vision, language, image_seq_length=4)
    packed = VisualChatDataModule(processor, dialogues(), dialogues(), batch_size=1, max_length=400, packing=True)
    keep = Keep(packed)
    rows = Rows(folder)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=int(ranks),
        use_distributed_sampler=False,
        strategy="ddp" if int(ranks) > 1 else "auto",
        max_epochs=2,
        default_root_dir=folder,
        logger=rows,
        log_every_n_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[keep, RunMetrics(), SampleDialogues(Path(folder) / f"of{ranks}", count=2, max_new_tokens=3)],
    )
    settings = OptimizerSettings(learning_rate=1e-2, betas=(0.9, 0.95))
    module = VisualChatModule(build, settings)
    data = VisualChatDataModule(
        processor, mixture(shown), mixture(shown), batch_size=int(batch_size), feature_cache=cache
    )
    trainer.fit(module, data)
    found = {
        "lengths": keep.lengths,
        "refusal": keep.refusal,
        "rows": rows.rows,
        "seen": keep.questions,
        "features": data.feature_counts,
        "keys": keep.keys,
        "projector": module.model.multi_modal_projector.weight.detach(),
    }
    torch.save(found, Path(folder) / f"ranks{ranks}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
