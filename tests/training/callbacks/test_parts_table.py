"""The table of parts and their sum."""

from rich.console import Console

from visualchat.model.parameters import Part, PartSize
from visualchat.training.callbacks.parts_table import parts_table


def test_parts_and_their_sum():
    console = Console(width=100, record=True)
    table = parts_table(
        [
            PartSize(Part.PROJECTOR, 1500, 1500, ("float32",)),
            PartSize(Part.LANGUAGE, 28500, 0, ("nf4", "uint8")),
        ]
    )
    console.print(table)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    assert "projector 1,500 1,500 float32" in lines
    assert "language model 28,500 0 nf4, uint8" in lines
    assert "all 30,000 1,500 5.00% trains" in lines
