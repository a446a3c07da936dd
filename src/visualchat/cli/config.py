"""Where the configuration tree lies, and the small things that all commands share."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from transformers.utils.logging import disable_progress_bar

from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.light import CARD, load_light

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "conf"  # in a wheel
CONF = str(_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "conf")

OUTPUTS = Path("outputs")


def run_name() -> str | None:
    """What was set on the command line, which tells a run from others; None for nothing. `${run_name:}` in YAML."""
    return HydraConfig.get().job.override_dirname[:128] or None  # W&B takes no longer name


def sweep_name() -> str | None:
    """Date and time of the sweep that this run belongs to; None for a single run. `${sweep_name:}` in YAML."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    return "/".join(part for part in Path(os.path.relpath(hydra.sweep.dir)).parts[-2:] if part != "..")


for _resolver in (run_name, sweep_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)


def quieten() -> None:
    """Keep other libraries' advertisements and notes to their own developers off people's screens."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the tiny world needs none
    if not sys.stderr.isatty():
        disable_progress_bar()


def saved_model(folder: str | None) -> Path:
    """The folder of a saved model, whole or light: the one asked for, or the newest under `outputs/`.

    Raises:
        ValueError: There is none.
    """
    if folder is not None:
        if not any((Path(folder) / name).is_file() for name in ("config.json", CARD)):
            raise ValueError(f"folder={folder}: no saved model there (config.json or {CARD} is missing)")
        return Path(folder)
    found = [*OUTPUTS.glob("**/model/config.json"), *OUTPUTS.glob(f"**/light/{CARD}")]
    configs = sorted(found, key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ValueError(
            f"no saved model under {OUTPUTS}/: train one first (visualchat-train), or name one with folder="
        )
    return configs[-1].parent


def load_model(
    folder: Path, vision: str | None = None, language: str | None = None
) -> VisualChatForConditionalGeneration:
    """The model of a folder that `saved_model` gave; the backbones of a light one may lie elsewhere by now."""
    if (folder / "config.json").is_file():
        return VisualChatForConditionalGeneration.from_pretrained(folder)
    return load_light(folder, vision, language)
