"""The table that a run begins with: the model's parts, their sizes, and what of them trains."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
from rich.console import Console
from rich.table import Table

from visualchat.model.parameters import PartSize, part_sizes


def parts_table(sizes: Sequence[PartSize]) -> Table:
    """One line a part, and their sum."""
    table = Table("part", "parameters", "trainable", "held as", title="the model")
    for column in table.columns[1:3]:
        column.justify = "right"
    for size in sizes:
        table.add_row(size.part, f"{size.parameters:,}", f"{size.trainable:,}", ", ".join(size.dtypes))
    table.add_section()
    total, trainable = sum(size.parameters for size in sizes), sum(size.trainable for size in sizes)
    table.add_row("all", f"{total:,}", f"{trainable:,}", f"{trainable / total:.2%} trains")
    return table


class PartsTable(lightning.Callback):
    """Prints the table before the first step."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count on every rank, print on the first."""
        sizes = part_sizes(pl_module.model)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            Console().print(parts_table(sizes))
