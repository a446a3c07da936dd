"""`visualchat-plan`: parameters, memory, tokens, steps and days of a run, before it is paid for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table

from visualchat.cli.combinations import check_combination
from visualchat.cli.config import check_attention, quieten
from visualchat.cli.main import plan as main
from visualchat.data.blend.mixture import Mixture
from visualchat.dialogue.encoding import encode_segments
from visualchat.dialogue.template import PAPER, render
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.processing_visualchat import prompt_template
from visualchat.model.trainable import set_trainable
from visualchat.plan.choose import FULL, Choice, Machine, assess, batch_sizes, best, largest, usable
from visualchat.plan.memory import STRATEGIES, Step, held_parts, weight_bytes
from visualchat.plan.shapes import Architecture, Sizes, meta_model, sizes_of
from visualchat.plan.workload import (
    CHARACTERS_PER_TOKEN,
    GPU_MEMORY,
    PEAK_TFLOPS,
    SETS,
    TokenEstimate,
    Workload,
    days,
    local_tokenizer,
    measured,
    of_table,
    operations,
    optimizer_steps,
    packed_rows,
)

SAMPLE = 256
"""Dialogues measured where the data are at hand."""

MOST_IMAGES = 8
"""Images of a full row of the paper's blends."""

GIB = 2**30


def architecture(node: DictConfig) -> Architecture:
    """A backbone's configuration: the values in its YAML, else its folder."""
    values = node.get("architecture")
    if values is not None:
        return OmegaConf.to_container(values, resolve=True)  # type: ignore[return-value]
    return located(node.path)


def located(path: DictConfig | str) -> str:
    """A folder or Hub name: as it stands, or what its `_target_` gives."""
    return path if isinstance(path, str) else instantiate(path)


def build_without_weights(config: DictConfig) -> VisualChatForConditionalGeneration:
    """The model of a training configuration on the meta device, with what trains."""
    known = {field: value for field, value in config.build_model.items() if field in VisualChatConfig.__annotations__}
    dtype = getattr(torch, config.dtype)
    model = meta_model(architecture(config.model.vision), architecture(config.model.language), dtype, **known)
    set_trainable(model, instantiate(config.model.trainable))
    return model


def find_workload(config: DictConfig, blend: str | None) -> Workload:
    """What an epoch of the configuration holds.

    Raises:
        ValueError: It can neither be looked up nor measured.
    """
    given = {name: value for name, value in config.workload.items() if value is not None}
    if len(given) == len(config.workload):
        return Workload(**given, source="as given by workload.*")
    if blend in SETS:
        return replace(of_table(SETS[str(blend)], 1.0 - config.blend.validation), **given)
    return replace(measured_workload(config), **given)


def measured_workload(config: DictConfig) -> Workload:
    """What an epoch of data at hand holds, by the language model's tokenizer, or by an estimate where it is not here.

    Neither pictures nor anything of the Hub are read.
    """
    train = instantiate(config.data, processor=None).train
    sample = [train[index] for index in range(min(SAMPLE, len(train)))]
    prompt = config.processor
    tokenizer = local_tokenizer(located(prompt.language))
    template = PAPER
    if tokenizer is not None:
        template = prompt_template(prompt.template, tokenizer)
        tokenizer.add_tokens([*template.tokens], special_tokens=True)
    counter: Any = TokenEstimate() if tokenizer is None else tokenizer
    encode = partial(encode_segments, tokenizer=counter, image_seq_length=prompt.image_seq_length, template=template)
    encodings = [encode(render(dialogue, prompt.system, template)) for dialogue in sample]
    size = Mixture.of(train).epoch_size
    found = measured(encodings, [len(dialogue.images) for dialogue in sample], size, "the configured data")
    if tokenizer is not None:
        return found
    estimated = f"{found.source}, with {CHARACTERS_PER_TOKEN} characters a token (the tokenizer is not on this machine)"
    return replace(found, source=estimated, longest=None)


@dataclass(frozen=True)
class Plan:
    """All that is printed.

    Attributes:
        title: Names the run.
        kind: Of attention.
        sizes: Of the model.
        machine: The GPUs.
        workload: Of an epoch.
        configured: The configured strategy, without and with checkpointing.
        checkpointing: Which of the two is configured.
        options: The other ways to run it, the preferred first.
        bits: Of a quantized base.
        rows_per_step: Rows of an optimizer step.
        epochs: Epochs, and `steps` of the optimizer over all of them.
        steps: Optimizer steps.
        operations: Of all epochs, without and with checkpointing.
        gpu: How the GPU is called, its peak and the share of it that is assumed.
    """

    title: str
    kind: str
    sizes: Sizes
    machine: Machine
    workload: Workload
    configured: tuple[Choice, Choice]
    checkpointing: bool
    options: tuple[Choice, ...]
    bits: int | None
    rows_per_step: int
    epochs: int
    steps: int
    operations: tuple[float, float]
    gpu: tuple[str, float, float]


def make_plan(config: DictConfig, choices: dict[str, Any]) -> Plan:
    """Compute everything; `choices` are Hydra's.

    Raises:
        ValueError: A name is unknown or a number makes no sense.
    """
    check_attention(config.attention)
    check_combination(config)
    machine, gpu = _machine(config)
    strategy = choices["trainer/strategy"]
    if strategy not in STRATEGIES:
        raise ValueError(f"trainer/strategy={strategy} cannot be planned; known are {', '.join(STRATEGIES)}")
    bits = config.model.quantization.bits
    if config.trainer.max_epochs is None or config.trainer.max_epochs < 1:
        raise ValueError(f"a plan needs the number of epochs, found trainer.max_epochs={config.trainer.max_epochs}")
    sizes = sizes_of(build_without_weights(config))
    workload = find_workload(config, choices.get("data/blend"))
    data, accumulate = config.data, config.trainer.accumulate_grad_batches
    step = full_step(sizes, workload, data)
    configured = [assess(sizes, machine, strategy, replace(step, checkpointing=on), bits) for on in (False, True)]
    rows_per_step = data.batch_size * accumulate * machine.gpus
    fitting = batch_sizes(rows_per_step, machine.gpus)
    options = tuple(
        largest(sizes, machine, name, replace(step, checkpointing=on), fitting, bits)
        for name in usable(bits, machine.gpus)
        for on in (False, True)
    )
    rows = packed_rows(workload, sizes.image_tokens, data.max_length) if data.packing else workload.dialogues
    epochs, kind = config.trainer.max_epochs, config.attention.kind
    total = [
        epochs * workload.dialogues * operations(sizes, workload, kind, checkpointing=on).total for on in (False, True)
    ]
    return Plan(
        title=title(choices),
        kind=kind,
        sizes=sizes,
        machine=machine,
        workload=workload,
        configured=(configured[0], configured[1]),
        checkpointing=bool(config.get("gradient_checkpointing", False)),
        options=options,
        bits=bits,
        rows_per_step=rows_per_step,
        epochs=epochs,
        steps=optimizer_steps(rows, data.batch_size, machine.gpus, accumulate, epochs),
        operations=(total[0], total[1]),
        gpu=gpu,
    )


def title(choices: dict[str, Any]) -> str:
    """The run by its choices: its experiment and its data."""
    names = ("experiment", "scale", "data", "data/source", "data/blend")
    return ", ".join(f"{name}={choices[name]}" for name in names if choices.get(name))


def _machine(config: DictConfig) -> tuple[Machine, tuple[str, float, float]]:
    """The GPUs, and their name, peak and assumed utilisation."""
    if config.gpus < 1 or not 0 < config.utilisation <= 1:
        raise ValueError(
            f"gpus is at least 1 and utilisation between 0 and 1, found {config.gpus} and {config.utilisation}"
        )
    if config.gpu not in PEAK_TFLOPS and None in (config.gpu_memory, config.peak_tflops):
        raise ValueError(
            f"unknown gpu {config.gpu!r}: known are {', '.join(PEAK_TFLOPS)}; else give gpu_memory and peak_tflops"
        )
    memory = config.gpu_memory or GPU_MEMORY[config.gpu]
    peak = config.peak_tflops or PEAK_TFLOPS[config.gpu]
    machine = Machine(config.gpus * config.trainer.get("num_nodes", 1), memory * GIB, config.reserve * GIB)
    return machine, (config.gpu, float(peak), float(config.utilisation))


def full_step(sizes: Sizes, workload: Workload, data: DictConfig) -> Step:
    """A batch of the fullest rows, which is what memory must hold."""
    tokens = min(data.max_length, workload.longest or data.max_length)
    dialogues = max(1.0, tokens / workload.tokens(sizes.image_tokens)) if data.packing else 1.0
    images = max(workload.most_images or MOST_IMAGES, round(dialogues * workload.images))
    answers = round(tokens * workload.answers / workload.tokens(sizes.image_tokens))
    return Step(data.batch_size, tokens, images, answers, checkpointing=False)


def parameters_table(sizes: Sizes, bits: int | None) -> Table:
    """Parameters by part, and what they take at rest."""
    table = Table("part", "parameters", "trained", "dtype", "GiB", title="parameters", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in held_parts(sizes, bits):
        trained = f"{part.trainable:,}" if part.trainable else "-"
        table.add_row(part.part, f"{part.parameters:,}", trained, ", ".join(part.dtypes), gib(part.bytes))
    table.add_section()
    table.add_row("all", f"{sizes.parameters:,}", f"{sizes.trained:,}", "", gib(weight_bytes(sizes, bits)))
    return table


def memory_table(plan: Plan) -> Table:
    """Memory on each GPU under the configured strategy, without and with checkpointing."""
    without, with_ = plan.configured
    title = (
        f"memory on each of {plan.machine.gpus} GPUs, GiB: {without.strategy}, {without.step.rows} rows of "
        f"{without.step.tokens} tokens with {without.step.images} images"
    )
    table = Table("", "as it is", "gradient checkpointing", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in without.memory.gpu:
        table.add_row(name, gib(without.memory.gpu[name]), gib(with_.memory.gpu[name]))
    table.add_section()
    table.add_row("all on the GPU", gib(without.memory.total), gib(with_.memory.total))
    table.add_row(
        f"fits {FULL:.0%} of {plan.machine.memory / GIB:g} GiB", *(yes_no(choice.fits) for choice in plan.configured)
    )
    for name in ("cpu", "nvme"):
        amounts = [getattr(choice.memory, name) for choice in plan.configured]
        if any(amounts):
            table.add_row(f"beside it: {name.upper()}, a GPU's process", *map(gib, amounts))
    return table


def options_table(plan: Plan) -> Table:
    """Every strategy with the largest batch that fits."""
    title = f"ways to a step of {plan.rows_per_step} rows: the largest batch that fits, else the smallest"
    heads = ("check-\npointing", "batch", "accumu-\nlated", "GPU\nGiB", "CPU\nGiB", "NVMe\nGiB", "fits")
    table = Table(Column("strategy", no_wrap=True), *heads, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    taken = best(plan.options)
    for choice in plan.options:
        amounts = (choice.memory.total, choice.memory.cpu, choice.memory.nvme)
        table.add_row(
            choice.strategy,
            "yes" if choice.step.checkpointing else "no",
            str(choice.step.rows),
            str(plan.rows_per_step // (choice.step.rows * plan.machine.gpus)),
            *(gib(amount) if amount else "-" for amount in amounts),
            yes_no(choice.fits),
            style="bold" if choice is taken else None,
        )
    return table


def run_table(plan: Plan) -> Table:
    """Tokens, steps, operations and days."""
    load, sizes, (name, peak, utilisation) = plan.workload, plan.sizes, plan.gpu
    tokens = load.dialogues * load.tokens(sizes.image_tokens)
    table = Table("", "", title="the run", title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("dialogues an epoch", f"{load.dialogues:,}")
    table.add_row(
        "a dialogue",
        f"{load.text:.0f} text tokens, {load.answers:.0f} of them answers; {load.images:.1f} images of "
        f"{sizes.image_tokens}",
    )
    table.add_row(
        "tokens an epoch", f"{tokens / 1e6:,.1f} million, {load.images * load.dialogues / 1e3:,.1f} thousand images"
    )
    table.add_row("epochs, optimizer steps", f"{plan.epochs}, {plan.steps:,} of {plan.rows_per_step} rows")
    for label, amount in zip(("as it is", "with checkpointing"), plan.operations, strict=True):
        spent = days(amount, plan.machine.gpus, peak, utilisation)
        duration = f"{spent:.1f} days" if spent >= 1 else f"{24 * spent:.1f} hours"
        table.add_row(
            f"operations {label}",
            f"{amount:.2e}: {duration} on {plan.machine.gpus} x {name} at {utilisation:.0%} of {peak:g} TFLOP/s",
        )
    return table


def verdict(plan: Plan) -> str:
    """One sentence: does it fit, and what to type if not."""
    configured = plan.configured[plan.checkpointing]
    if configured.fits:
        how = ", gradient checkpointing" if plan.checkpointing else ""
        return f"As configured it fits: {configured.strategy}, data.batch_size={configured.step.rows}{how}."
    taken = best(plan.options)
    if taken is None:
        return "It does not fit, under no strategy: take more or larger GPUs, or model/quantization=nf4."
    return f"As configured it does not fit; this does: {settings(taken, plan)}"


def settings(choice: Choice, plan: Plan) -> str:
    """What to add to the command line for a choice."""
    accumulate = plan.rows_per_step // (choice.step.rows * plan.machine.gpus)
    return (
        f"trainer/strategy={choice.strategy} data.batch_size={choice.step.rows} "
        f"trainer.accumulate_grad_batches={accumulate} gradient_checkpointing={str(choice.step.checkpointing).lower()}"
    )


def gib(amount: float) -> str:
    """Bytes as GiB, with the digits that matter."""
    value = amount / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.005 or not amount else f"{value:.1e}"


def yes_no(value: bool) -> str:
    """A word in its colour."""
    return "[green]yes[/green]" if value else "[red]no[/red]"


def show(plan: Plan, console: Console) -> None:
    """Print it."""
    console.print(f"\n{plan.title}, attention {plan.kind}", style="bold", highlight=False)
    for table in (parameters_table(plan.sizes, plan.bits), memory_table(plan), options_table(plan), run_table(plan)):
        console.print()
        console.print(table)
    console.print(f"\n{verdict(plan)}", highlight=False, soft_wrap=True)
    console.print(f"Counted: {plan.workload.source}. How: docs/planning.md.", highlight=False, soft_wrap=True)


def run(config: DictConfig) -> None:
    """The command."""
    quieten()
    show(make_plan(config, dict(HydraConfig.get().runtime.choices)), Console())


if __name__ == "__main__":
    main()
