"""Which strategies and batches fit a GPU, and which to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from visualchat.plan.machine import Machine
from visualchat.plan.memory import STRATEGIES, Memory, Step, estimate
from visualchat.plan.shapes import Sizes


@dataclass(frozen=True)
class Choice:
    """A strategy at some batch.

    Attributes:
        strategy: A name in `STRATEGIES`.
        step: The batch on each GPU.
        memory: What it takes.
        fits: Whether the GPU holds it and keeps a margin.
    """

    strategy: str
    step: Step
    memory: Memory
    fits: bool


def assess(sizes: Sizes, machine: Machine, strategy: str, step: Step, base_bits: int | None = None) -> Choice:
    """One strategy with one batch."""
    memory = estimate(sizes, STRATEGIES[strategy], machine.gpus, step, base_bits=base_bits, reserve=machine.reserve)
    return Choice(strategy, step, memory, memory.total <= machine.usable)


def largest(
    sizes: Sizes, machine: Machine, strategy: str, step: Step, rows: Sequence[int], base_bits: int | None = None
) -> Choice:
    """The strategy with the largest of the batches that fits, or with the smallest of them if none does."""
    choices = [assess(sizes, machine, strategy, replace(step, rows=count), base_bits) for count in sorted(rows)]
    return next((choice for choice in reversed(choices) if choice.fits), choices[0])


def batch_sizes(rows_per_step: int, gpus: int) -> list[int]:
    """The batches on each GPU that make a step of exactly so many rows, by accumulating them; empty if none does."""
    if rows_per_step % gpus:
        return []
    share = rows_per_step // gpus
    return [count for count in range(1, share + 1) if share % count == 0]


def usable(base_bits: int | None, gpus: int) -> list[str]:
    """Strategies worth comparing, in the order of preference.

    A quantised base is kept whole; one GPU has nothing to shard over.
    """
    names = ["auto", "zero3_offload", "zero3_nvme"] if gpus == 1 else [name for name in STRATEGIES if name != "auto"]
    splits = {None: names, 4: ["fsdp2"]}.get(base_bits, [])
    return [name for name in names if "weights" not in STRATEGIES[name].shards or name in splits]


def best(choices: Sequence[Choice]) -> Choice | None:
    """The first that fits, in the order given; of one that fetches its weights for every batch, the largest batch."""
    first = next((choice for choice in choices if choice.fits), None)
    if first is None or STRATEGIES[first.strategy].weights_on == "gpu":
        return first
    same = [choice for choice in choices if choice.fits and choice.strategy == first.strategy]
    return max(same, key=lambda choice: choice.step.rows)
