"""Answer-only loss (arXiv 2309.14327, section 4.2), computed on answer rows selected before the language head.

Only a fifth or so of all positions predicts an answer token; the head's logits, the largest tensor of a step, are never
made for the others. In training they are made a chunk of rows at a time, each with its gradient in the same pass, so
that neither is ever in memory as a whole.

Shapes: B batch, S sequence, E hidden size, N positions that predict an answer token, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from visualchat.dialogue.encoding import IGNORE_INDEX
from visualchat.model.sharding import is_split

CHUNK = 1 << 23
"""Logits made in one piece in training: 32 MB in fp32, as much again for their probabilities. Fewer would read the
head too often."""
GRADIENT_SCALE = 1024.0
"""On the logits' gradient, so that small probabilities survive in fp16; a power of two, so exact elsewhere."""


def answer_rows(hidden_states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that predict a labelled token, (N, E), and those tokens, (N,), in row-major order.

    Args:
        hidden_states: (B, S, E).
        labels: (B, S) token ids, `IGNORE_INDEX` where nothing is trained.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE_INDEX
    return hidden_states[:, :-1][chosen], targets[chosen]


def language_head(language_model: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """Logits as the language model itself makes them, (..., V), from (..., E), with its family's scalings."""
    head = language_model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has a head"
    logits = head(hidden_states)
    config = language_model.config
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = cap * (logits / cap).tanh()
    return logits


def answer_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each answer token in fp32, (N,), from (N, V) and (N,)."""
    return cross_entropy(logits.float(), targets, reduction="none")


def answer_loss(losses: Tensor) -> Tensor:
    """Mean over the N answer tokens; exactly 0, with a gradient of 0, where there is none."""
    return losses.sum() / max(len(losses), 1)


@torch.compiler.disable
def training_loss(language_model: PreTrainedModel, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`answer_loss` and `answer_losses` of the logits of `rows` (N, E), without ever holding all of them.

    The latter have a gradient only where all logits are made.

    Needs a frozen head that lies whole on this device; where it trains or is sharded (FSDP2, ZeRO-3), all logits are
    made.
    """
    head = language_model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has a head"
    if any(p.requires_grad or is_split(p) for p in head.parameters()):
        losses = answer_losses(language_head(language_model, rows), targets)
        return answer_loss(losses), losses
    total, losses = _ChunkedLoss.apply(rows, targets, language_model)
    return total / max(len(targets), 1), losses


class _ChunkedLoss(torch.autograd.Function):
    """The sum of all rows' cross-entropies, and each; the rows' gradient is made on the way, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, language_model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        size = max(1, CHUNK // language_model.config.get_text_config().vocab_size)
        wide = torch.promote_types(rows.dtype, torch.float32)  # where fp16's loss scale comes later, nothing is lost
        gradient = torch.empty_like(rows, dtype=wide) if rows.requires_grad else None
        losses = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            with torch.set_grad_enabled(gradient is not None):
                part = rows[chunk].detach().requires_grad_(gradient is not None)
                logits = language_head(language_model, part)
            log_probabilities = logits.detach().float().log_softmax(-1)
            losses[chunk] = -log_probabilities.gather(1, targets[chunk, None])[:, 0]
            if gradient is None:
                continue
            of_logits = log_probabilities.exp_().mul_(GRADIENT_SCALE)  # the probabilities, less 1 at the target
            of_logits[torch.arange(len(part), device=part.device), targets[chunk]] -= GRADIENT_SCALE
            (scaled,) = torch.autograd.grad(logits, part, of_logits.to(logits.dtype))
            gradient[chunk] = scaled.to(wide) / GRADIENT_SCALE
        ctx.save_for_backward(gradient)
        ctx.dtype = rows.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None
