"""The table that a run begins with: the model's parts, their sizes, and what of them trains."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
from rich.console import Console
from rich.table import Table

from visualchat.model.trainable import Part, parts


def parts_table(found: Sequence[Part]) -> Table:
    """One line a part, and their sum."""
    table = Table("part", "parameters", "trainable", "held as", title="the model")
    for column in table.columns[1:3]:
        column.justify = "right"
    for part in found:
        table.add_row(part.name, f"{part.parameters:,}", f"{part.trainable:,}", ", ".join(part.dtypes))
    table.add_section()
    total, trainable = sum(part.parameters for part in found), sum(part.trainable for part in found)
    table.add_row("all", f"{total:,}", f"{trainable:,}", f"{trainable / total:.2%} trains")
    return table


class PartsTable(lightning.Callback):
    """Prints the table before the first step."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count on every rank, print on the first."""
        found = parts(pl_module.model)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            Console().print(parts_table(found))
