"""Saved models as commands name them: found, and loaded."""

from __future__ import annotations

from pathlib import Path

from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.light import CARD, load_light

OUTPUTS = Path("outputs")


def saved_model(folder: str | None) -> Path:
    """The folder of a saved model, whole or light: the one asked for, or the newest under `outputs/`.

    Raises:
        ValueError: There is none.
    """
    if folder is not None:
        if not any((Path(folder) / name).is_file() for name in ("config.json", CARD)):
            raise ValueError(f"folder={folder}: no saved model there (config.json or {CARD} is missing)")
        return Path(folder)
    configs = [*OUTPUTS.glob("**/model/config.json"), *OUTPUTS.glob(f"**/light/{CARD}")]
    if not configs:
        raise ValueError(
            f"no saved model under {OUTPUTS}/: train one first (visualchat-train), or name one with folder="
        )
    return max(configs, key=lambda path: path.stat().st_mtime).parent


def load_model(
    folder: Path, vision: str | None = None, language: str | None = None
) -> VisualChatForConditionalGeneration:
    """The model of a folder that `saved_model` gave; the backbones of a light one may lie elsewhere by now."""
    if (folder / "config.json").is_file():
        return VisualChatForConditionalGeneration.from_pretrained(folder)
    return load_light(folder, vision, language)
