"""Other people's trainers make our loss and our gradients of this model."""

import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from visualchat.dialogue import Dialogue, Turn
from visualchat.model.trainable import set_trainable


def dialogues() -> list[Dialogue]:
    """Answers of unequal length, so that a mean of means is another number."""
    colours = ("red", "green", "blue", "white")
    return [
        Dialogue((Turn.ask("Which?", [Image.new("RGB", (20, 20), colour)], "It is " + "very " * n + colour),))
        for n, colour in enumerate(colours)
    ]


PLAIN = {
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "remove_unused_columns": False,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
"""Plain gradient descent on a CPU, every step logged, whoever trains."""


def trained(model, processor, folder, batch_size: int, accumulate: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The logged loss and the trained weights after one step of plain gradient descent on the four dialogues."""
    set_trainable(model)
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        learning_rate=0.1,
        **PLAIN,
    )
    trainer = Trainer(
        model, settings, train_dataset=dialogues(), data_collator=lambda rows: dict(processor.batch(rows))
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"], {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def test_transformers_trainer_accumulates_to_the_same_loss_and_step(make_model, processor, tmp_path):
    expected = make_model()(**processor.batch(dialogues())).loss.item()
    loss, whole = trained(make_model(), processor, tmp_path, 4, 1)
    assert loss == pytest.approx(expected, rel=1e-4)
    accumulated, parts = trained(make_model(), processor, tmp_path, 2, 2)
    assert accumulated == pytest.approx(expected, rel=1e-4)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=1e-5, rtol=1e-4)


STEPS = 3
RATE = 0.05


def plain_losses(model, processor) -> list[float]:
    """What our own training step makes: the loss of each step of gradient descent over the four dialogues."""
    set_trainable(model.train())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = model(**processor.batch(dialogues())).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mmca", "causal"])
def test_trls_trainer_makes_our_losses(make_model, processor, tmp_path, kind):
    from datasets import Dataset as Rows
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=RATE,
        bf16=False,
        gradient_checkpointing=False,
        **PLAIN,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    model = make_model(attention_kind=kind)
    set_trainable(model)
    trainer = SFTTrainer(
        model,
        settings,
        data_collator=lambda rows: dict(processor.batch([dialogues()[row["number"]] for row in rows])),
        train_dataset=Rows.from_dict({"number": [0, 1, 2, 3], "input_ids": [[0]] * 4, "labels": [[0]] * 4}),
        processing_class=processor,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    expected = plain_losses(make_model(attention_kind=kind), processor)
    assert expected[-1] < expected[0]
    assert losses == pytest.approx(expected, rel=2e-3)  # logged with four digits
