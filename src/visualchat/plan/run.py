"""A run before a machine is paid for: what it takes as configured, and the other ways to run it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from visualchat.plan.choose import Choice, assess, batch_sizes, largest, usable
from visualchat.plan.flops import flops
from visualchat.plan.machine import Machine
from visualchat.plan.memory import STRATEGIES, Step
from visualchat.plan.shapes import Sizes
from visualchat.plan.workload import Workload, full_step, packed_rows, planned_steps


@dataclass(frozen=True)
class RunSettings:
    """What a run takes depends on these of its settings.

    Attributes:
        kind: Of attention.
        strategy: A name in `STRATEGIES`.
        checkpointing: Whether activations are computed again in the backward pass.
        bits: Of a quantized base; None for one as it is.
        batch_size: Rows of a batch on each GPU.
        accumulate: Batches of an optimizer step.
        epochs: Passes over the data.
        max_length: Tokens of the longest row.
        packing: Whether several dialogues share a row.
        early: The kind of attention of the first layers and their share of all; None where all attend alike.
    """

    kind: str
    strategy: str
    checkpointing: bool
    bits: int | None
    batch_size: int
    accumulate: int
    epochs: int
    max_length: int
    packing: bool
    early: tuple[str, float] | None = None


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        title: Names the run.
        settings: Its own.
        sizes: Of the model.
        machine: The GPUs.
        workload: Of an epoch.
        configured: The configured strategy, without and with checkpointing.
        options: The other ways to run it, the preferred first.
        steps: Optimizer steps of all epochs.
        flops: Of all epochs, without and with checkpointing.
    """

    title: str
    settings: RunSettings
    sizes: Sizes
    machine: Machine
    workload: Workload
    configured: tuple[Choice, Choice]
    options: tuple[Choice, ...]
    steps: int
    flops: tuple[float, float]

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over all GPUs."""
        return self.settings.batch_size * self.settings.accumulate * self.machine.gpus


def plan_run(title: str, settings: RunSettings, sizes: Sizes, machine: Machine, workload: Workload) -> Plan:
    """Compute what a run takes.

    Raises:
        ValueError: Its strategy is not one that can be planned.
    """
    if settings.strategy not in STRATEGIES:
        raise ValueError(f"trainer/strategy={settings.strategy} cannot be planned; known are {', '.join(STRATEGIES)}")
    batch_size, accumulate, epochs = settings.batch_size, settings.accumulate, settings.epochs
    step = full_step(sizes, workload, batch_size, settings.max_length, settings.packing)
    plain, checkpointed = step, replace(step, checkpointing=True)
    fitting = batch_sizes(batch_size * accumulate * machine.gpus, machine.gpus)
    rows = packed_rows(workload, sizes.image_tokens, settings.max_length) if settings.packing else workload.dialogues

    def assessed(one: Step) -> Choice:
        return assess(sizes, machine, settings.strategy, one, settings.bits)

    def total(checkpointing: bool) -> float:
        one = flops(sizes, workload, settings.kind, checkpointing=checkpointing, early=settings.early).total
        return epochs * workload.dialogues * one

    return Plan(
        title=title,
        settings=settings,
        sizes=sizes,
        machine=machine,
        workload=workload,
        configured=(assessed(plain), assessed(checkpointed)),
        options=tuple(
            largest(sizes, machine, strategy, one, fitting, settings.bits)
            for strategy in usable(settings.bits, machine.gpus)
            for one in (plain, checkpointed)
        ),
        steps=planned_steps(rows, batch_size, machine.gpus, accumulate, epochs),
        flops=(total(False), total(True)),
    )
