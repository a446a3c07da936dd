"""Weights that ZeRO-3 or FSDP2 has split over the ranks: how model code reads them, and makes modules that are whole.

Everything here does nothing special for ordinary parameters, so model code needs no second path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.modeling_utils import set_zero3_state


def is_split(parameter: Tensor) -> bool:
    """Whether the ranks share the parameter's values: ZeRO-3 marks those, FSDP2's are distributed tensors."""
    return hasattr(parameter, "ds_id") or isinstance(parameter, DTensor)


def is_split_model(model: nn.Module) -> bool:
    """The same of a model's parameters, inside its forward pass too, when FSDP2's are whole for a moment."""
    return isinstance(model, FSDPModule) or any(is_split(parameter) for parameter in model.parameters())


@contextmanager
def gathered(parameter: Tensor) -> Iterator[Tensor]:
    """The parameter's values in one piece, detached, to read inside; all ranks must come here together."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter):
            yield parameter.detach()
    else:
        yield parameter.full_tensor().detach() if isinstance(parameter, DTensor) else parameter.detach()


@contextmanager
def writable(parameter: Tensor) -> Iterator[Tensor]:
    """The parameter's values in one piece, to be changed inside to the same ones by all ranks; not for FSDP2's."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            yield parameter.detach()
    else:
        assert not isinstance(parameter, DTensor), "fill a model before it is split"
        yield parameter.detach()


def whole_state(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Named parameters, detached and in one piece; split ones are gathered one after the other, to the CPU."""
    state: dict[str, Tensor] = {}
    for name, parameter in parameters:
        with gathered(parameter) as values:
            state[name] = values.cpu().clone() if is_split(parameter) else values
    return state


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside get shapes but no values, under ZeRO-3 too, where transformers would split real ones."""
    with set_zero3_state(), torch.device("meta"):
        yield
