"""Training batches that attend by another kind now and then, so that a model serves under both.

A language model was pretrained with causal attention; some batches of it may ease the way to another kind. Block
attention (arXiv 2409.15355) is trained so, with whole texts and blocks in turns.
"""

from __future__ import annotations

import random
from typing import cast

import lightning

from visualchat.model import VisualChatForConditionalGeneration


def mixed_attention(kind: str | None, share: float, seed: int) -> MixedAttention | None:
    """The callback, or None where no other kind is wanted."""
    return None if kind is None else MixedAttention(kind, share, seed)


class MixedAttention(lightning.Callback):
    """Lets a share of the training batches attend by another kind; validation, and what is saved, keep the model's.

    Which batches depends on seed, epoch and their place in it alone, so that all ranks agree and a resumed run does as
    an uninterrupted one would.

    Args:
        kind: A name in `visualchat.attention.KINDS`.
        share: Of the batches, above 0 and up to 1.
        seed: Of the run.
    """

    def __init__(self, kind: str, share: float, seed: int) -> None:
        self.kind, self.share, self.seed = kind, share, seed
        self.own = ""

    def chosen(self, epoch: int, batch: int) -> bool:
        """Whether a batch attends by the other kind."""
        return random.Random(f"mixed attention {self.seed} {epoch} {batch}").random() < self.share

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Switch, where this batch is chosen."""
        if self.chosen(trainer.current_epoch, batch_idx):
            self.own = _model(pl_module).config.attention_kind
            _switch(_model(pl_module), self.kind)

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Switch back, before anything is validated or saved."""
        if self.own:
            _switch(_model(pl_module), self.own)
            self.own = ""


def _model(module: lightning.LightningModule) -> VisualChatForConditionalGeneration:
    return cast(VisualChatForConditionalGeneration, module.model)


def _switch(model: VisualChatForConditionalGeneration, kind: str) -> None:
    model.config.attention_kind = kind
    model.set_attn_implementation({"text_config": model.config.decoder_attention})
