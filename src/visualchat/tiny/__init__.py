"""The embedded tiny world: drawn images, dialogues about them and small pretrained backbones, for any laptop."""

from pathlib import Path

from visualchat.tiny.captions import TinyCaptions
from visualchat.tiny.dialogues import SYSTEM, TinyDialogues
from visualchat.tiny.hop_dialogues import HopDialogues

BACKBONES = Path(__file__).parent / "backbones"
"""Folder of the shipped backbones: `vision`, `language_causal` and `language_mixed`, each for `from_pretrained`."""


def backbone(name: str) -> Path:
    """The folder of a shipped backbone.

    Raises:
        ValueError: There is none of that name.
    """
    known = sorted(path.parent.name for path in BACKBONES.glob("*/config.json"))
    if name not in known:
        raise ValueError(f"unknown tiny backbone {name!r}, expected one of {', '.join(known)}")
    return BACKBONES / name


__all__ = ["BACKBONES", "SYSTEM", "HopDialogues", "TinyCaptions", "TinyDialogues", "backbone"]
