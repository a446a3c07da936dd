"""Answer-only loss (arXiv 2309.14327, section 4.2), computed on answer rows selected before the language head.

Only a fifth or so of all positions predicts an answer token; the head's logits, the largest tensor of a step, are never
made for the others.

Shapes: B batch, S sequence, E hidden size, N positions that predict an answer token, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from visualchat.encoding import IGNORE_INDEX


def answer_rows(hidden_states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that predict a labelled token, (N, E), and those tokens, (N,), in reading order, row by row.

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
