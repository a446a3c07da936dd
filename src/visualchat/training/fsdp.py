"""All that is particular to FSDP2: torch's `fully_shard` under Lightning's ModelParallelStrategy.

Each rank reads the backbones from their files (mapped memory, on the CPU) and keeps its share of every layer.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


class Fsdp2Strategy(ModelParallelStrategy):
    """Lightning's, with all processes data-parallel and checkpoints of one file that hold what trains."""

    strategy_name = "visualchat_fsdp2"

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Lightning's, which by itself would split tensors within a node."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: Lightning's would gather the frozen backbones on rank 0 for every checkpoint."""
        return {}


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
