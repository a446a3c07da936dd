"""Batches that attend by another kind: so many as asked for, each as under that kind, and only in training."""

from functools import partial

import lightning
import pytest
import torch
from PIL import Image

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.training.callbacks.mixed_attention import MixedAttention, mixed_attention
from visualchat.training.module import VisualChatModule

COLOURS = ("red", "blue", "green", "black", "white", "yellow")


def dialogues() -> list[Dialogue]:
    images = [Image.new("RGB", (16, 16), colour) for colour in COLOURS]
    return [
        Dialogue((Turn.ask("Order?", [a, images[n - 1]], f"{COLOURS[n]}"),), id=COLOURS[n])
        for n, a in enumerate(images)
    ]


class Seen(lightning.Callback):
    """The kind and the loss of each pass."""

    def __init__(self):
        self.training, self.validation, self.losses = [], [], []

    def on_before_backward(self, trainer, pl_module, loss):
        config = pl_module.model.config
        self.training.append((config.attention_kind, pl_module.model.language_model.config._attn_implementation))

    def on_validation_batch_end(self, trainer, pl_module, *rest, **more):
        config = pl_module.model.config
        self.validation.append((config.attention_kind, pl_module.model.language_model.config._attn_implementation))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def trained(make_model, processor, folder, kind, mixed=None, checkpoint=None, callbacks=(), **settings):
    """What a run of two epochs of six batches saw, and its module."""
    seen = Seen()
    trainer = lightning.Trainer(
        **{"max_epochs": 2, **settings},
        accelerator="cpu",
        callbacks=[seen, *callbacks, *([mixed] if mixed else [])],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = VisualChatModule(partial(make_model, attention_kind=kind))
    trainer.fit(module, VisualChatDataModule(processor, dialogues(), dialogues(), batch_size=1), ckpt_path=checkpoint)
    return seen, module


def test_half_of_the_batches_attend_by_the_other_kind_and_validation_by_none(make_model, processor, tmp_path):
    mixed = mixed_attention("causal", 0.5, seed=4)
    seen, module = trained(make_model, processor, tmp_path, "mmca", mixed)
    expected = ["causal" if mixed.chosen(epoch, batch) else "mmca" for epoch in (0, 1) for batch in range(6)]
    assert [kind for kind, _ in seen.training] == expected
    assert {*expected} == {"causal", "mmca"}
    assert len({*seen.training}) == 2  # the function goes with the kind
    assert {kind for kind, _ in seen.validation} == {"mmca"}
    assert module.model.config.attention_kind == "mmca"
    assert sum(mixed_attention("causal", 0.3, 0).chosen(0, n) for n in range(2000)) == pytest.approx(600, abs=60)
    assert mixed_attention(None, 0.5, 0) is None


@pytest.mark.parametrize(("kind", "other"), [("mmca", "causal"), ("mmca_joint", "unit"), ("causal", "unit")])
def test_where_all_batches_attend_by_the_other_kind_it_trains_as_that(make_model, processor, tmp_path, kind, other):
    found, module = trained(make_model, processor, tmp_path, kind, MixedAttention(other, 1.0, 0), limit_val_batches=0)
    expected, like = trained(make_model, processor, tmp_path, other, limit_val_batches=0)
    assert found.losses == expected.losses
    for (name, value), (_, wanted) in zip(module.model.named_parameters(), like.model.named_parameters(), strict=True):
        assert torch.equal(value, wanted), name
    own, _ = trained(make_model, processor, tmp_path, kind, limit_val_batches=0)
    assert own.losses != expected.losses


def test_a_resumed_run_chooses_the_batches_of_one_that_was_not_stopped(make_model, processor, tmp_path):
    def half():
        return MixedAttention("causal", 0.5, 1)

    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=8)
    whole, _ = trained(make_model, processor, tmp_path, "mmca", half(), callbacks=[keep])
    rest, _ = trained(make_model, processor, tmp_path, "mmca", half(), tmp_path / "kept.ckpt")
    assert len(rest.training) == 4
    assert [kind for kind, _ in rest.training] == [kind for kind, _ in whole.training[8:]]
