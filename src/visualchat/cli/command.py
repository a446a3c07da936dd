"""How every command starts: its help and its configuration first, its work, with all that must be imported, after.

So help and misspelt settings are answered at once. Hydra's own errors reach the person through `visualchat.cli.errors`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import hydra
from omegaconf import DictConfig

from visualchat.cli.config import CONF

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: with 1 it raises errors instead of printing them."""


@dataclass(frozen=True)
class Command:
    """A console command.

    Attributes:
        config: The file of `conf/` that holds its settings, without `.yaml`.
        work: The module whose `run(config)` does what the command is for.
        help: What `--help` prints.
        actions: What its first word may be, for a command that does several things.
    """

    config: str
    work: str
    help: str
    actions: tuple[str, ...] = ()


def start(command: Command) -> None:
    """Answer `--help`, or compose the configuration and do the work."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(command.help)
        return
    sys.argv[1:] = overrides(arguments)

    def job(config: DictConfig) -> Any:
        return imported(command.work).run(config)

    job.__module__ = command.work  # Hydra names the job after it
    hydra.main(config_path=CONF, config_name=command.config, version_base="1.3")(job)()


def overrides(arguments: Sequence[str]) -> list[str]:
    """Hydra's overrides from a command line whose first word may be an action, and for `show` the second a number."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return list(arguments)
    action, *rest = arguments
    found = [f"action={action}"]
    if action == "show" and rest and rest[0].isdecimal():
        found.append(f"number={rest.pop(0)}")
    return [*found, *rest]


def imported(module: str) -> ModuleType:
    """A module and all that it needs; the garbage collector rests, which saves a fifth of the time."""
    with _garbage_kept():
        return import_module(module)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # modules stay: no later collection need look at them
