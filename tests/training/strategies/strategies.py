"""Run by tests in processes of its own: trains the tiny world under a strategy of conf/ and keeps what came of it.

python strategies.py STRATEGY RANKS FOLDER [PRECISION]

Two fits: a whole one of two epochs, which keeps a checkpoint of the first, and one that resumes from it.
"""

import sys
from pathlib import Path

import lightning
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint

from visualchat.cli.config import CONF
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.sharding import whole_state
from visualchat.tiny import TinyDialogues, backbone
from visualchat.training.gather import gather_model
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings

VISION, LANGUAGE = backbone("vision"), backbone("language_mixed")
GROWN = 436
"""Tokens: three more than the language model brings, as where a template adds some."""


def text_only(number: int) -> Dialogue:
    return Dialogue((Turn.ask(f"What is {number}?", [], "a circle " * (1 + number)),), id=f"text-{number}")


def dialogues() -> list[Dialogue]:
    """Nine; every other one has no image."""
    tiny = TinyDialogues("train", 5)
    return [tiny[n // 2] if n % 2 == 0 else text_only(n) for n in range(9)]


def questions(processor: VisualChatProcessor) -> list:
    """Two prompts: with and without an image."""
    asked = [
        Dialogue((Turn.ask("What color is it?", [*dialogues()[0].turns[0].images][:1], None),), id="image"),
        Dialogue((Turn.ask("What color is it?", [], None),), id="text"),
    ]
    return [processor.prompt([dialogue]) for dialogue in asked]


class Keep(lightning.Callback):
    """Losses, weighted as they train; whether a batch had images; the weights at first; answers after validation."""

    def __init__(self, prompts: list):
        self.losses, self.images, self.answers, self.weights = [], [], [], {}
        self.prompts = prompts

    def on_fit_start(self, trainer, pl_module):
        self.weights = whole_state(pl_module.model.named_parameters())
        self.weights = {name: value.clone() for name, value in self.weights.items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = torch.as_tensor(outputs["loss"])
        self.losses.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))
        self.images.append("pixel_values" in batch)

    def on_validation_epoch_end(self, trainer, pl_module):
        """Every rank a prompt of its own, one process both: the ranks are busy for different numbers of steps."""
        own = self.prompts if trainer.world_size == 1 else [self.prompts[trainer.global_rank]]
        for prompt, steps in zip(own, (3, 6) if len(own) == 2 else ((3, 6)[trainer.global_rank],), strict=True):
            out = pl_module.model.generate(**prompt, max_new_tokens=steps, do_sample=False)
            self.answers.append(out[0, prompt["input_ids"].shape[1] :].tolist())


def main(name: str, ranks: str, folder: str, precision: str = "32-true") -> None:
    def build():
        torch.manual_seed(0)
        return VisualChatForConditionalGeneration.from_backbones(
            VISION,
            LANGUAGE,
            image_seq_length=16,
            projector_type="linear_norm",
            vocab_size=GROWN,
            dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32,
        )

    def fit(**settings):
        with initialize_config_dir(CONF, version_base="1.3"):
            strategy = compose("train", [f"trainer/strategy={name}"]).trainer.strategy
        keep = Keep(questions(processor))
        kept = ModelCheckpoint(Path(folder) / name, filename="{epoch}", save_top_k=-1)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=int(ranks),
            use_distributed_sampler=False,
            strategy=strategy if isinstance(strategy, str) else instantiate(strategy),
            precision=precision,
            max_epochs=2,
            accumulate_grad_batches=2,  # three batches an epoch: the second step of each takes one only
            gradient_clip_val=0.7,  # of norms between 0.4 and 3
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[keep, kept] if "ckpt_path" not in settings else [keep],
            enable_checkpointing="ckpt_path" not in settings,
        )
        # without gradients all of them, so that plain steps also prove the layers that compute again
        module = VisualChatModule(
            build,
            OptimizerSettings(learning_rate=1e-2, embedding_learning_rate=2e-3),
            gradient_checkpointing=name != "auto",
        )
        validation = [dialogues()[0], text_only(0), dialogues()[2]]  # the second rank: no image, then idle
        data = VisualChatDataModule(processor, dialogues(), validation, batch_size=4 // int(ranks))
        trainer.fit(module, data, **settings)
        return keep, module, trainer

    torch.set_num_threads(1)
    processor = VisualChatProcessor.from_backbones(VISION, LANGUAGE, image_seq_length=16)
    first, _, _ = fit()
    resumed, module, trainer = fit(ckpt_path=str(Path(folder) / name / "epoch=0.ckpt"))
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    rank = trainer.global_rank
    gather_model(module, trainer)
    if rank == 0:
        module.model.save_pretrained(Path(folder) / f"{name}-model")
        processor.save_pretrained(Path(folder) / f"{name}-model")
    found = {key: getattr(first, key) for key in ("losses", "images", "answers", "weights")}
    found |= {"resumed": resumed.losses, "metrics": metrics, "steps": trainer.global_step}
    torch.save(found, Path(folder) / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
