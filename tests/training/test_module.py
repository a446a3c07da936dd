"""The LightningModule: learns, resumes, keeps what trains, and refuses a checkpoint of another base."""

from functools import partial

import lightning
import pytest
import torch
from PIL import Image

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.model.trainable import trainable_state
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings, training_steps


def dialogues() -> list[Dialogue]:
    """Two images told apart by colour, in both orders, and one dialogue without images."""
    pictures = {colour: Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")}
    found = [
        Dialogue((Turn.ask("Order?", [pictures[a], pictures[b]], f"{a} {b}"),), id=f"{a}-{b}")
        for a in pictures
        for b in pictures
    ]
    return [*found, Dialogue((Turn.ask("Hello?", [], "hi"),), id="text")]


def trainer(folder, **settings) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, log_every_n_steps=1, **{**quiet, **settings}
    )


def data(processor, **settings) -> VisualChatDataModule:
    return VisualChatDataModule(processor, dialogues(), dialogues(), **{"batch_size": 2, **settings})


FAST = OptimizerSettings(learning_rate=2e-2, embedding_learning_rate=2e-2)


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_one_batch_can_be_learnt_by_heart(make_model, processor, tmp_path, kind):
    """Through projector and embedding alone, images told apart by content and by order."""
    module = VisualChatModule(partial(make_model, attention_kind=kind, projector_type="linear_norm"), FAST)
    run = trainer(tmp_path, max_steps=250, max_epochs=-1, gradient_clip_val=1.0, limit_val_batches=0)
    run.fit(module, data(processor, batch_size=5))
    assert run.global_step == 250
    module.eval()
    batch = processor.batch(dialogues())
    found = module.model(**batch)
    assert torch.equal(found.logits.argmax(-1), batch["labels"][:, 1:][batch["labels"][:, 1:] >= 0])


def losses(module, datamodule, run, **fit) -> list[float]:
    seen: list[float] = []

    class Keep(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs["loss"].item())

    run.callbacks.append(Keep())
    run.fit(module, datamodule, **fit)
    return seen


def test_a_resumed_run_goes_on_to_the_last_bit(make_model, processor, tmp_path):
    """Model, optimizer, learning rate and the order of the data after an epoch's end."""
    build = partial(make_model, projector_type="linear_norm")
    whole = losses(VisualChatModule(build, FAST), data(processor), trainer(tmp_path, max_epochs=4))
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    losses(VisualChatModule(build, FAST), data(processor), trainer(tmp_path, max_epochs=4, callbacks=[checkpoint]))
    resumed = VisualChatModule(build, FAST)
    rest = losses(resumed, data(processor), trainer(tmp_path, max_epochs=4), ckpt_path=tmp_path / "kept/epoch=1.ckpt")
    assert len(whole) == 12
    assert rest == whole[6:]


def test_bf16_weights_learn_by_small_steps_and_resume_to_the_last_bit(make_model, processor, tmp_path):
    """Steps that bf16 would round away add up in fp32 masters, which checkpoints hold; weights stay bf16."""
    small = OptimizerSettings(learning_rate=4e-5)  # the norm of 0.3 keeps steps of 1e-3 or more

    def fit(folder, **start):
        module = VisualChatModule(partial(make_model, projector_type="linear_norm", dtype=torch.bfloat16), small)
        kept = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        run = trainer(folder, max_epochs=40, precision="bf16-true", callbacks=[kept], limit_val_batches=0)
        before = None if start else trainable_state(module.assemble())
        return before, losses(module, data(processor), run, **start), trainable_state(module.model), run.optimizers[0]

    before, whole, after, optimizer = fit(tmp_path / "whole")
    _, rest, resumed, again = fit(tmp_path / "resumed", ckpt_path=tmp_path / "whole/epoch=19.ckpt")
    assert rest == whole[60:]
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    for name, value in after.items():
        assert torch.equal(resumed[name], value)
        assert not torch.equal(before[name], value), name
    for ours, theirs in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert ours["master"].dtype == ours["exp_avg"].dtype == torch.float32
        assert torch.equal(ours["master"], theirs["master"])
    checkpoint = torch.load(tmp_path / "whole/epoch=39.ckpt")
    assert {value.dtype for value in checkpoint["state_dict"].values()} == {torch.bfloat16}
    (state,) = checkpoint["optimizer_states"]
    assert all(
        torch.equal(kept["master"], own["master"])
        for kept, own in zip(state["state"].values(), optimizer.state.values(), strict=True)
    )


def test_a_checkpoint_holds_what_trains_and_its_base(make_model, processor, tmp_path):
    module = VisualChatModule(make_model, base="a test's base")
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data(processor))
    run.save_checkpoint(tmp_path / "light.ckpt")
    kept = torch.load(tmp_path / "light.ckpt", weights_only=True)
    assert set(kept["state_dict"]) == {
        "model.language_model.model.embed_tokens.weight",
        "model.multi_modal_projector.weight",
        "model.multi_modal_projector.bias",
    }
    assert kept["base"]["name"] == "a test's base"


def test_a_checkpoint_of_another_base_is_refused(make_model, processor, tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(VisualChatModule(make_model, base="base A"), data(processor))
    run.save_checkpoint(tmp_path / "a.ckpt")

    def other():
        model = make_model()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
        return model

    with pytest.raises(ValueError, match="it was trained on base A, this model stands on base B"):
        trainer(tmp_path, max_steps=2).fit(
            VisualChatModule(other, base="base B"), data(processor), ckpt_path=tmp_path / "a.ckpt"
        )
    larger = VisualChatModule(partial(make_model, projector_type="linear_norm"), base="base A")
    with pytest.raises(ValueError, match=r"missing or surplus: .*multi_modal_projector.0.weight"):
        trainer(tmp_path, max_steps=2).fit(larger, data(processor), ckpt_path=tmp_path / "a.ckpt")


def test_accumulation_keeps_the_schedule_in_optimizer_steps(make_model, processor, tmp_path):
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2)
    module = VisualChatModule(make_model, OptimizerSettings(learning_rate=1.0, warmup_fraction=0.25))
    run.fit(module, data(processor))
    assert run.global_step == training_steps(run, batches=3) == 4
    assert module.lr_schedulers().get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 2, "limit_train_batches": 4}, 8),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 10),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 6),
    ],
)
def test_training_steps(tmp_path, settings, steps):
    assert training_steps(trainer(tmp_path, **settings), batches=10) == steps


def test_a_run_without_end_has_no_schedule(tmp_path):
    with pytest.raises(ValueError, match=r"set trainer.max_epochs or trainer.max_steps"):
        training_steps(trainer(tmp_path, max_epochs=-1), batches=10)
