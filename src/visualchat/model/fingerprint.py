"""What a checkpoint holds: the parameters that train, and a hash of those that do not."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from visualchat.model.sharding import gathered, whole_state


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name, detached; in one piece; all ranks must call it together."""
    return whole_state((name, p) for name, p in model.named_parameters() if p.requires_grad)


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold a value that is infinite or no number."""
    return [name for name, value in state.items() if not value.isfinite().all()]


def base_fingerprint(model: nn.Module, trained: Container[str] | None = None) -> str:
    """A hash (hex) of the frozen parameters: names, shapes, and up to 64 values of each, evenly spaced.

    It tells bases apart in a moment at any size; it is no proof against a forged base. Values are hashed as float32, so
    weights that were rounded to another precision make another base.

    Args:
        model: With all its weights.
        trained: The parameters that are not of the base, beside all adapters; those that require gradients if None.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad if trained is None else name in trained or ".lora_" in name:
            continue
        name = name.replace(".base_layer", "")  # a layer with an adapter beside it is the same layer
        with gathered(parameter) as whole:
            digest.update(f"{name}{tuple(whole.shape)}".encode())
            values = whole.flatten()
            chosen = torch.linspace(0, len(values) - 1, min(64, len(values)), dtype=torch.float64).long()
            digest.update(values[chosen.to(values.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
