"""Hashes that tell models apart: of the base that something was trained on, and of a module bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Container

import torch
from torch import nn

from visualchat.model.sharding import gathered, is_split


def base_fingerprint(model: nn.Module, trained: Container[str] | None = None) -> str:
    """A hash (hex) of the frozen parameters: names, shapes, and up to 64 values of each, evenly spaced.

    It tells bases apart in a moment at any size; it does not protect against a forged base. Values are hashed as
    float32, so weights that were rounded to another precision make another base.

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


def weights_fingerprint(module: nn.Module) -> str:
    """A hash (hex) of all parameters and buffers, which must lie whole here: names, dtypes, shapes and every value."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        assert not is_split(tensor), name
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
