"""`load_best_model_at_end=true` leaves the weights and figures of the best validation, under every kind of strategy.

The worst loss is made the best, so that the first epoch's model is to be found and not the last one's.
"""

import json

import pytest
import torch
from commands import history, run
from safetensors.torch import load_file

from visualchat.training.callbacks.best import trained_parameters

pytestmark = pytest.mark.slow

LINE = [
    *("visualchat-train", "trainer.accelerator=cpu", "trainer.max_epochs=2", "data.train.size=64"),
    *("data.validation.size=16", "callbacks.samples=null", "callbacks.parts_table=null", "evaluation=none"),
    *("save=both", "callbacks.checkpoint.monitor=validation/loss", "callbacks.checkpoint.mode=max"),
    *("load_best_model_at_end=true", "hydra.run.dir=mine"),
]
RANKS = ["data.batch_size=2", "trainer.devices=2"]
KINDS = {
    "one": ["data.batch_size=4"],
    "zero3": [*RANKS, "trainer/strategy=zero3", "attention=label"],
    "fsdp2": [*RANKS, "trainer/strategy=fsdp2", "model/trainable=lora_language", "attention=numbered"],
}


def weights(folder):
    return load_file(folder / "light" / "trained.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_that_of_the_best_validation(tmp_path, kind):
    run(tmp_path, *LINE, *KINDS[kind]).ok()
    left = weights(tmp_path / "mine")
    best, last = (trained_parameters(tmp_path / "mine" / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert left.keys() == best.keys() == last.keys()
    assert all(torch.equal(left[name], best[name].to(left[name].dtype)) for name in left)
    assert any(not torch.equal(left[name], last[name].to(left[name].dtype)) for name in left)
    figures = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    losses = history(tmp_path / "mine", "validation/loss")
    assert figures["validation/loss"] == pytest.approx(max(losses.values()))
    assert figures["train/best_step"] == 16
    assert figures["train/steps"] == 32
    assert "validation/exact_match" not in figures  # that of the last step is not this model's
    run(tmp_path, "visualchat-evaluate", "folder=mine/model", "evaluation.dialogues.seen.size=2").ok()
    assert "already finished" in run(tmp_path, *LINE, *KINDS[kind], "resume=auto").ok().out


def test_a_finished_run_is_typed_again_for_its_best_model_and_for_its_last(tmp_path):
    line = [word for word in LINE if not word.startswith("load_best")] + KINDS["one"]
    models = {}
    for of in ("false", "true", "false"):
        done = run(tmp_path, *line, "resume=auto", f"load_best_model_at_end={of}").ok()
        assert "already finished" not in done.out
        found = weights(tmp_path / "mine")
        before = models.setdefault(of, found)
        assert all(torch.equal(found[name], before[name]) for name in found)
    assert any(not torch.equal(models["true"][name], models["false"][name]) for name in found)
