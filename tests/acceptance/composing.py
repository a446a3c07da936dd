"""Composes a command line of ours in this process: through the command's own entry point, with Hydra's `--cfg`."""

import contextlib
import functools
import importlib
import io
import sys
import tomllib
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from lines import ROOT
from omegaconf import DictConfig, OmegaConf

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
UNBUILT = (
    "visualchat-chat",
    "visualchat-convert",
    "visualchat-generate",
    "visualchat-judge",
    "visualchat-serve",
    "visualchat-study",
    "visualchat-web",
)
"""Commands whose configurations name nothing to build."""
SWEEP = ("-m", "--multirun")


def composed(command: Sequence[str]) -> DictConfig:
    """The whole configuration of a line that starts one run, resolved, Hydra's own part included; not to be changed.

    Raises:
        AssertionError: The command refuses the line.
    """
    return composed_once(tuple(command))


@functools.cache
def composed_once(command: tuple[str, ...]) -> DictConfig:
    """`composed`, kept, because documents repeat each other's lines."""
    module, function = SCRIPTS[command[0]].split(":")
    arguments, out, err, code = sys.argv, io.StringIO(), io.StringIO(), 0
    GlobalHydra.instance().clear()
    try:
        sys.argv = [*command, "--cfg", "all"]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = arguments
    assert not code, f"$ {' '.join(command)}\n{err.getvalue()}"
    config = OmegaConf.create(out.getvalue())
    assert isinstance(config, DictConfig)
    return resolved(config)


def resolved(config: DictConfig) -> DictConfig:
    """The same with every interpolation outside Hydra's own part in its value's place."""
    hydra, before = HydraConfig.instance(), HydraConfig.instance().cfg
    config.hydra.runtime.output_dir = "outputs/run"  # what Hydra knows once the run has begun
    try:
        hydra.cfg = OmegaConf.create({"hydra": config.hydra})
        for key in config:
            if key != "hydra" and OmegaConf.is_config(config[key]):
                OmegaConf.resolve(config[key])
    finally:
        hydra.cfg = before
    return config


def axes(command: Sequence[str]) -> dict[str, list[str]]:
    """What a line sweeps over and the values of each; nothing for a line that starts one run.

    A sweep's axes are those of the line and those of its experiment's own `hydra.sweeper.params`. `...` stands for what
    a reader adds, so such a sweep may have none.
    """
    if not any(word in SWEEP for word in command):
        return {}
    overrides = OverridesParser.create().parse_overrides(single(command)[1:])
    given = {one.get_key_element(): one for one in overrides if one.is_sweep_override()}
    fixed = [one.input_line for one in overrides if not one.is_sweep_override()]
    own = composed([command[0], *fixed]).hydra.sweeper.params or {}
    found = {key: str(values).split(",") for key, values in own.items()}
    found |= {key: list(one.sweep_string_iterator()) for key, one in given.items()}
    assert found or "..." in command, f"$ {' '.join(command)}\n-m, but nothing to sweep over"
    return found


def single(command: Sequence[str]) -> list[str]:
    """The words of a line without the flag of a sweep, `...`, and choices that are left open (`attention=...`)."""
    return [word for word in command if word not in (*SWEEP, "...") and not is_open(word)]


def is_open(word: str) -> bool:
    """Whether a word stands for any choice of a group."""
    group, _, value = word.partition("=")
    return value == "..." and (ROOT / "conf" / group).is_dir()


def points(command: Sequence[str]) -> Iterator[list[str]]:
    """The single runs that a line comes to: itself, or for a sweep enough of its runs that each value is in one."""
    swept = axes(command)
    fixed = [word for word in single(command) if word.lstrip("+").partition("=")[0] not in swept]
    first = {key: values[0] for key, values in swept.items()}
    yield [*fixed, *(f"{key}={value}" for key, value in first.items())]
    for axis, values in swept.items():
        for value in values[1:]:
            yield [*fixed, *(f"{key}={taken}" for key, taken in {**first, axis: value}.items())]
