"""All that is particular to FSDP2: torch's `fully_shard` under Lightning's ModelParallelStrategy.

Each rank reads the backbones from their files (mapped memory, on the CPU) and keeps its share of every layer.
Checkpoints are ordinary ones, a file with whole tensors of what trains, so they fit any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


class Fsdp2Strategy(ModelParallelStrategy):
    """Lightning's, with all processes data-parallel.

    Lightning's own checkpoints would gather the frozen backbones, and fail on an optimizer that has only some of the
    parameters.

    Args:
        **settings: `timeout` and `process_group_backend` of Lightning's strategy.
    """

    strategy_name = "visualchat_fsdp2"

    def __init__(self, **settings: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **settings)

    def setup_environment(self) -> None:
        """Lightning's, which by itself would split tensors within a node."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes: `load_optimizer_state_dict` is here to be called."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module puts what trains into the checkpoint."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state with whole tensors, on the CPU."""
        return tree_map(_whole, getattr(optimizer, "_optimizer", optimizer).state_dict())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """One process's, as of any strategy whose checkpoints are whole."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The file's content."""
        return self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give each rank its share of what trains."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                parameters[name].copy_(_share_like(parameters[name], value))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its share of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, values in state["state"].items():
                like = parameters[number]
                values |= {
                    k: _share_like(like, v) for k, v in values.items() if getattr(v, "shape", None) == like.shape
                }
            optimizer.load_state_dict(state)


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _share_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's share of a whole tensor, split as the parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def split_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a model over the mesh: each block of a list of layers on its own, the rest together.

    Args:
        model: With whole weights; what trains must be settled.
        mesh: The data-parallel dimension of Lightning's mesh.
    """
    for module in [*model.modules()]:
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
