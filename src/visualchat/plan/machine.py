"""The GPUs of a run: how many, what each holds, and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30

FULL = 0.9
"""Share of a GPU's memory that a run may count on: the rest is for what the formulas miss.

Measured on a CPU, MMCA keeps 5 to 6% more than they say; PyTorch's allocator leaves gaps between blocks on top.
"""

PEAK_TFLOPS = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250, "l40s": 362, "rtx4090": 165, "mi300x": 1307}
"""Dense bf16 FLOPs a second of named GPUs, in 10^12, from their makers' data sheets."""

GPU_MEMORY = {"a100": 80, "h100": 80, "h200": 139, "b200": 180, "l40s": 44, "rtx4090": 24, "mi300x": 192}
"""GiB that each of them offers."""


@dataclass(frozen=True)
class Machine:
    """The GPUs.

    Attributes:
        gpus: How many, over all nodes.
        memory: Bytes of each.
        reserve: Bytes of each that are kept back.
        name: What each is called.
        peak_tflops: Dense bf16 FLOPs a second of each, in 10^12.
        utilisation: Share of that peak which a step reaches.
    """

    gpus: int
    memory: float
    reserve: float
    name: str = "GPU"
    peak_tflops: float = 1.0
    utilisation: float = 1.0

    @property
    def usable(self) -> float:
        """Bytes of each that a run may take."""
        return FULL * self.memory


def machine_of(
    gpu: str,
    gpus: int,
    nodes: int,
    *,
    utilisation: float,
    reserve: float,
    memory: float | None = None,
    peak_tflops: float | None = None,
) -> Machine:
    """So many GPUs of a name on each of so many nodes.

    Args:
        gpu: A name in `PEAK_TFLOPS`, or any other if its memory and peak are given.
        gpus: On each node.
        nodes: Machines.
        utilisation: Share of the peak that a step reaches.
        reserve: GiB of each that are kept back.
        memory: GiB of each; None for that GPU's.
        peak_tflops: None for that GPU's.

    Raises:
        ValueError: The GPU is unknown, or a number makes no sense.
    """
    if gpus < 1 or not 0 < utilisation <= 1:
        raise ValueError(f"gpus is at least 1 and utilisation between 0 and 1, found {gpus} and {utilisation}")
    if gpu not in PEAK_TFLOPS and None in (memory, peak_tflops):
        raise ValueError(
            f"unknown gpu {gpu!r}: known are {', '.join(PEAK_TFLOPS)}; else give gpu_memory and peak_tflops"
        )
    size, peak = memory or GPU_MEMORY[gpu], peak_tflops or PEAK_TFLOPS[gpu]
    return Machine(gpus * nodes, size * GIB, reserve * GIB, gpu, float(peak), float(utilisation))
