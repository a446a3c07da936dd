"""The training loss, made in chunks, is the answer loss of all logits, and so is its gradient."""

import pytest
import torch
from PIL import Image
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from visualchat.dialogue import Dialogue, Turn
from visualchat.model import loss as module
from visualchat.model.loss import answer_loss, answer_losses, language_head, training_loss
from visualchat.model.trainable import set_trainable

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)),
    "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, head_dim=8, final_logit_softcapping=2.0)),
    "scaled": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, **HEADS, logits_scaling=3.0)),
}


def frozen(family: str, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    return model.requires_grad_(False)


def rows_and_targets(count: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(count, 16, generator=generator).to(dtype).requires_grad_()
    return rows, torch.randint(0, 50, (count,), generator=generator)


def both(model, rows, targets):
    """Loss and gradient of the rows: made in chunks, and of all logits."""
    for loss in (training_loss(model, rows, targets)[0], whole_loss(model, rows, targets)):
        yield loss, torch.autograd.grad(3.0 * loss, rows)[0]


def whole_loss(model, rows, targets):
    """The loss of all logits at once."""
    return answer_loss(answer_losses(language_head(model, rows), targets))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7 * 50, 1 << 20])
def test_chunks_change_nothing(monkeypatch, family, chunk):
    """Both take the logits in float32; what is left is the order of its sums."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    (loss, gradient), (expected_loss, expected_gradient) = both(frozen(family), *rows_and_targets(23))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision(dtype, rounding):
    """Gradients are rounded to the rows' dtype a few times; relative to the largest, as sums of both signs are."""
    (loss, gradient), (expected_loss, expected_gradient) = both(frozen("llama", dtype), *rows_and_targets(23, dtype))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0.0)
    error = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
    assert error < 4 * rounding


def test_small_probabilities_survive_in_fp16(monkeypatch):
    """A vocabulary of 50 with one sure token: the others' probabilities are below fp16's smallest number."""
    model = frozen("llama", torch.float16)
    rows = torch.zeros(1, 16, dtype=torch.float16).requires_grad_()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()[0, 0] = 17.0
        rows[0, 0] = 1.0
    loss_scale = 1024.0
    (gradient,) = torch.autograd.grad(loss_scale * training_loss(model, rows, torch.tensor([0]))[0], rows)
    exact = loss_scale * 17.0 * (torch.tensor([17.0] + [0.0] * 49).softmax(0)[0] - 1.0)
    assert gradient[0, 0].item() == pytest.approx(exact.item(), rel=2**-9)  # a few roundings to fp16


def test_without_rows_the_loss_is_zero_and_touches_them():
    rows, targets = rows_and_targets(0)
    loss = training_loss(frozen("llama"), rows, targets)[0]
    assert loss.item() == 0.0
    loss.backward()
    assert rows.grad is not None


def test_without_gradients_it_is_the_same_number():
    model, (rows, targets) = frozen("llama"), rows_and_targets(5)
    with torch.no_grad():
        assert torch.equal(training_loss(model, rows, targets)[0], training_loss(model, rows.detach(), targets)[0])


def test_a_head_that_trains_gets_its_gradient():
    model, (rows, targets) = frozen("llama"), rows_and_targets(5)
    weight = model.get_output_embeddings().weight.requires_grad_()
    (found,) = torch.autograd.grad(training_loss(model, rows, targets)[0], weight)
    (expected,) = torch.autograd.grad(whole_loss(model, rows, targets), weight)
    assert torch.equal(found, expected)


def test_in_training_the_loss_is_that_of_evaluation(model, processor):
    """The same sums in another order, in float32."""
    batch = processor.batch([Dialogue((Turn.ask("What?", [Image.new("RGB", (16, 16), "red")], "A red one."),))])
    set_trainable(model)
    evaluated, trained = model.eval()(**batch), model.train()(**batch)
    torch.testing.assert_close(trained.loss, evaluated.loss, rtol=1e-6, atol=0.0)
    assert trained.logits is None
    assert len(evaluated.logits) == (batch["labels"] >= 0).sum()
