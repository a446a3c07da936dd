"""A plan as it is printed: five tables, and a sentence that says whether the run fits and what to type if not."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from visualchat.plan.choose import Choice, best
from visualchat.plan.flops import days
from visualchat.plan.machine import FULL, GIB
from visualchat.plan.memory import held_parts, weight_bytes
from visualchat.plan.run import Plan
from visualchat.plan.serving import serving
from visualchat.plan.shapes import Sizes


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
    """Tokens, steps, FLOPs and days."""
    load, sizes, machine, settings = plan.workload, plan.sizes, plan.machine, plan.settings
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
    table.add_row("epochs, optimizer steps", f"{settings.epochs}, {plan.steps:,} of {plan.rows_per_step} rows")
    for label, amount in zip(("as it is", "with checkpointing"), plan.flops, strict=True):
        spent = days(amount, machine)
        duration = f"{spent:.1f} days" if spent >= 1 else f"{24 * spent:.1f} hours"
        table.add_row(
            f"FLOPs {label}",
            f"{amount:.2e}: {duration} on {machine.gpus} x {machine.name} at {machine.utilisation:.0%} of "
            f"{machine.peak_tflops:g} TFLOP/s",
        )
    return table


def serving_table(plan: Plan) -> Table:
    """What one GPU takes that serves the model."""
    found, tokens = serving(plan.sizes, plan.settings.bits), plan.settings.max_length
    table = Table("", "", title="serving it on one GPU, GiB", title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("all weights", gib(found.weights))
    table.add_row(f"an image that is known, {plan.sizes.image_tokens} tokens", gib(found.image))
    table.add_row(f"a session of {tokens} tokens", gib(found.session(tokens)))
    table.add_row("such sessions beside the weights", f"{found.sessions(tokens, plan.machine):,}")
    return table


def verdict(plan: Plan) -> str:
    """One sentence: does it fit, and what to type if not."""
    configured = plan.configured[plan.settings.checkpointing]
    if configured.fits:
        how = ", gradient checkpointing" if plan.settings.checkpointing else ""
        return f"As configured it fits: {configured.strategy}, data.batch_size={configured.step.rows}{how}."
    taken = best(plan.options)
    if taken is None:
        return "It does not fit, under no strategy: take more or larger GPUs, or model/quantization=nf4."
    return f"As configured it does not fit; this does: {overrides(taken, plan)}"


def overrides(choice: Choice, plan: Plan) -> str:
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
    console.print(f"\n{plan.title}, attention {plan.settings.kind}", style="bold", highlight=False)
    for table in (
        parameters_table(plan.sizes, plan.settings.bits),
        memory_table(plan),
        options_table(plan),
        run_table(plan),
        serving_table(plan),
    ):
        console.print()
        console.print(table)
    console.print(f"\n{verdict(plan)}", highlight=False, soft_wrap=True)
    console.print(f"Counted: {plan.workload.source}. How: docs/planning.md.", highlight=False, soft_wrap=True)
