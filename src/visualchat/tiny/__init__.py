"""The embedded tiny world: drawn pictures, templated dialogues and small pretrained backbones, so that all runs on a laptop."""

from pathlib import Path

BACKBONES = Path(__file__).parent / "backbones"
"""Folder of the shipped backbones: `vision`, `language_causal` and `language_mixed`, each for `from_pretrained`."""
