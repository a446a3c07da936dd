"""Where the configuration tree lies, its resolvers, and what keeps other libraries quiet. Imports nothing heavy."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from visualchat.training.accumulation import batches_to_accumulate

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "conf"  # in a wheel
CONF = str(_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "conf")

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
"""How a line that may be copied is printed by rich: as it stands, and never broken."""

LONGEST_NAME = 240
"""Bytes of a folder's name; 255 is the limit of common file systems."""


def run_name() -> str | None:
    """What was set on the command line, which tells a run from others; None for nothing. `${run_name:}` in YAML."""
    return HydraConfig.get().job.override_dirname[:128] or None  # W&B takes no longer name


def sweep_name() -> str | None:
    """Date and time of the sweep that this run belongs to; None for a single run. `${sweep_name:}` in YAML."""
    hydra = HydraConfig.get()
    if not Path(hydra.runtime.output_dir).is_relative_to(Path(hydra.sweep.dir).resolve()):
        return None
    return "/".join(part for part in Path(os.path.relpath(hydra.sweep.dir)).parts[-2:] if part != "..")


for _resolver in (run_name, sweep_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)


def silence_libraries() -> None:
    """Keep other libraries' advertisements and notes to their own developers off people's screens."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the tiny world needs none
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # the last step is logged
    logging.getLogger("DeepSpeed").addFilter(_not_about_the_accelerator)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # advertises another package
    from transformers.utils.logging import disable_progress_bar, set_tqdm_hook

    if sys.stderr.isatty():
        set_tqdm_hook(_late_bar)
    else:
        disable_progress_bar()


def _not_about_the_accelerator(record: logging.LogRecord) -> bool:
    """DeepSpeed says that there is no GPU at the first save of every run, also where nothing of it is used."""
    return "Setting accelerator to" not in record.getMessage()


def _late_bar(bar: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """A progress bar of transformers; what takes less than two seconds shows none."""
    return bar(*arguments, **{"delay": 2, **keywords})


def check_attention(attention: DictConfig) -> None:
    """Refuse, before anything is read or built, a choice of attention that does not exist.

    Raises:
        ValueError: A name is unknown; the nearest is named.
    """
    from visualchat.attention.functional import resolve_implementation
    from visualchat.attention.kinds import KINDS, check_name
    from visualchat.model.configuration_visualchat import MODEL_KINDS, POSITIONS, STARTS, check_choice

    check_name(attention.kind, MODEL_KINDS)
    if attention.early_kind is not None:
        check_name(attention.early_kind, KINDS)
    resolve_implementation(attention.implementation)
    check_choice("image_numbers", attention.image_numbers, STARTS)
    check_choice("image_positions", attention.image_positions, POSITIONS)
    if attention.mixed_with is None:
        return
    check_name(attention.mixed_with, KINDS)
    if attention.kind == "cross" or attention.early_kind is not None or attention.mixed_with == attention.kind:
        raise ValueError(
            f"attention.mixed_with={attention.mixed_with} with attention.kind={attention.kind} and "
            f"attention.early_kind={attention.early_kind}: expected another kind, by which all layers attend, and "
            "images in the sequence"
        )
    if not 0 < attention.mixed_share <= 1:
        raise ValueError(f"attention.mixed_share={attention.mixed_share}: expected a share above 0, at most 1")


def check_number(name: str, value: object, least: int, *, none: bool = False) -> None:
    """Refuse a setting that must be a whole number.

    Args:
        name: The setting, as it is typed.
        value: What it was set to.
        least: The smallest number it may be.
        none: Whether null is allowed, too.

    Raises:
        ValueError: It is something else.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and value >= least) and not (none and value is None):  # type: ignore[operator]
        found = "null" if value is None else value
        raise ValueError(f"{name}={found}: expected a whole number, at least {least}{', or null' if none else ''}")


def attention_setting(wanted: Mapping[str, Any]) -> str:
    """What is typed for the `attention` of a model or a command: a choice of `conf/attention`, and what that lacks."""
    shared, *files = sorted((Path(CONF) / "attention").glob("*.yaml"), key=lambda path: (path.stem != "_base", path))
    lines: list[list[str]] = []
    for path in files:
        choice: Any = OmegaConf.merge(OmegaConf.load(shared), OmegaConf.load(path))
        other = {name: value for name, value in wanted.items() if choice.get(name) != value}
        words = [f"attention.{name}={'null' if value is None else value}" for name, value in other.items()]
        lines.append([f"attention={path.stem}", *words])
    fewest = min(lines, key=len)
    return " ".join(fewest)


def folder_name(overrides: str, number: int) -> str:
    """The folder of a sweep's run: its overrides in letters that neither a shell nor Hydra wants quoted.

    `a=1,b/c=x` gives `a-1+b.c-x`. Where that would lose other letters or is too long for a name, its start and the
    run's number.
    """
    name = overrides.translate(str.maketrans("=,/", "-+."))
    plain = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    return f"{plain[: LONGEST_NAME // 4]}...{number}"


def setting(name: str, value: object) -> str:
    """`name=value` as it can be typed in a shell: quoted for it and for Hydra where the value needs it."""
    text = str(value)
    if re.fullmatch(r"[\w./+@:%-]+", text, flags=re.ASCII):
        return f"{name}={text}"
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + (match[2] and '\\"'), text)
    return shlex.quote(f'{name}="{escaped}"')


def records_folder() -> str | None:
    """Where Hydra leaves the configuration of a run as it starts; nowhere on all ranks but the first."""
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return None if ranks and ranks[0] != "0" else ".hydra.new"


OmegaConf.register_new_resolver("accumulation", batches_to_accumulate, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("records_folder", records_folder, replace=True)
