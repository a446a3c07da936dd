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


def trained(model, processor, folder, batch_size: int, accumulate: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The logged loss and the trained weights after one step of plain gradient descent on the four dialogues."""
    set_trainable(model)
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        learning_rate=0.1,
        max_grad_norm=0.0,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
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
