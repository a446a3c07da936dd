"""Benchmarks as dialogues: their published files, questions with what an evaluation needs to know of them."""

from visualchat.data.sources.benchmarks.dialogues import Mmdu, SparklesEval, VisChainBench
from visualchat.data.sources.benchmarks.multi_image import Blink, MantisEval, Mimic, Mirb, MuirBench, Nlvr2, SeedBench2
from visualchat.data.sources.benchmarks.single_image import CocoKarpathy, Pope, ScienceQa, VqaV2

__all__ = [
    "Blink",
    "CocoKarpathy",
    "MantisEval",
    "Mimic",
    "Mirb",
    "Mmdu",
    "MuirBench",
    "Nlvr2",
    "Pope",
    "ScienceQa",
    "SeedBench2",
    "SparklesEval",
    "VisChainBench",
    "VqaV2",
]
