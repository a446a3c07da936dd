"""How every command starts: its help and its configuration first, its work, with all that must be imported, after.

So help and misspelt settings are answered at once. Errors reach the person through `visualchat.cli.mistakes`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from visualchat.cli.config import CONF
from visualchat.cli.mistakes import describe, nearest, setting_like
from visualchat.cli.provenance import RECORDS, keep_configuration
from visualchat.cli.run_folder import require_own_folder

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: with 1 it raises errors instead of printing them."""

WAIT_POLICY = "OMP_WAIT_POLICY"
"""OpenMP's environment variable. By default its threads burn their time while they wait for one another, so a process
that shares its processors waits many times longer; read once, when torch is imported."""

DEBUG = "debug=true"
"""What a person types for the whole trace of an error, as with `HYDRA_FULL_ERROR=1`."""


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

    @property
    def name(self) -> str:
        """As it is typed."""
        return f"visualchat-{self.work.rpartition('.')[2]}"


class _EndedError(BaseException):
    """The work ended with an error; not an `Exception`, so that Hydra lets it pass unprinted."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def start(command: Command) -> None:
    """Answer `--help`, or compose the configuration and do the work; errors end with words and an exit code."""
    typed = sys.argv[1:]
    if "--help" in typed or "-h" in typed:
        _show(command.help)
        return
    os.environ.setdefault(WAIT_POLICY, "passive")  # also for processes that it starts
    settings = [item for item in typed if item != DEBUG]
    sys.argv[1:] = overrides(settings) if command.actions else settings
    whole_trace = DEBUG in typed or os.environ.get(FULL_ERROR) == "1"

    def job(config: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        folder, name = Path(hydra_config.runtime.output_dir), hydra_config.job.name
        try:
            if hydra_config.output_subdir is not None:
                require_own_folder(folder, name, hydra_config.output_subdir)
            with _environment(FULL_ERROR, "1" if whole_trace else None):  # as processes that it starts should find it
                value = imported(command.work).run(config)
            keep_configuration(folder)
            return value
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if hydra_config.mode == RunMode.MULTIRUN:
                raise  # this run failed, the sweep continues
            remove_empty_run(folder, hydra_config.output_subdir, f"{name}.log")
            if not isinstance(error, Exception):
                raise
            raise _EndedError(error) from None

    job.__module__ = command.work  # Hydra names the job after it
    try:
        check_action(sys.argv[1:], command.actions)
        check_flags(sys.argv[1:], command.config)
        with _environment(FULL_ERROR, "1"):  # Hydra then raises its errors instead of printing them
            hydra.main(config_path=CONF, config_name=command.config, version_base="1.3")(job)()
    except _EndedError as ended:
        sys.exit(_report(ended.error, command, whole_trace))
    except Exception as error:
        sys.exit(_report(error, command, whole_trace))
    except KeyboardInterrupt:
        sys.exit(130)


def _show(text: str) -> None:
    """Print a text, unless its reader has seen enough (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end


def check_action(arguments: Sequence[str], actions: Sequence[str]) -> None:
    """Whether a command that does several things was told which.

    Raises:
        ValueError: It was not, or it knows no such action.
    """
    if not actions or any(argument.startswith("-") for argument in arguments):
        return
    action = next((item.removeprefix("action=") for item in arguments if item.startswith("action=")), None)
    expected = f"expected one of {', '.join(actions)}"
    if action is None:
        raise ValueError(f"missing action: {expected}")
    if action not in actions:
        raise ValueError(f"unknown action {action}{nearest(action, actions)}\n{expected}")


def check_flags(arguments: Sequence[str], config: str) -> None:
    """Whether Hydra can read the flags; it would answer with a usage of its own that names no setting.

    Raises:
        ValueError: It cannot; a setting that a flag is like is named.
    """
    try:
        _, unknown = _parsed(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; --help says what can be typed") from None
    if not unknown:
        return
    if not unknown[0].startswith("-"):
        raise ValueError(
            f"cannot read {unknown[0]} behind a flag: type flags before all settings; --help says what can be typed"
        )
    name, _, value = unknown[0].lstrip("-").replace("-", "_").partition("=")
    guess = setting_like(name, config)
    typed = f"{guess or 'NAME'}={value or ('...' if guess else 'VALUE')}"
    raise ValueError(f"unknown flag {unknown[0]}: settings are typed without dashes, as {typed}; --help has the rest")


def _parsed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings among what was typed, without Hydra's flags and their values, and what Hydra cannot place.

    Raises:
        argparse.ArgumentError: A flag lacks its value, or has one that it does not take.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)

    parser.error = refuse  # type: ignore[method-assign]
    found, unknown = parser.parse_known_args(arguments)
    return found.overrides, unknown


def _report(error: Exception, command: Command, whole_trace: bool) -> int:
    """Print what went wrong.

    Returns:
        The exit code.
    """
    try:
        settings, _ = _parsed(sys.argv[1:])
    except argparse.ArgumentError:  # which is the error
        settings = []
    code, words = describe(error, command.config, settings)
    if whole_trace or words is None:
        traceback.print_exception(error)
    if words is not None:
        print(f"{command.name}: {words}", file=sys.stderr)
    return code


def remove_empty_run(folder: Path, records: str | None, log: str) -> None:
    """Remove the folder of a run that ended before it left anything but Hydra's own records.

    Args:
        folder: Of the run.
        records: Its folder with the configuration; None where there is none.
        log: The name of its log.
    """
    if records is None:
        return
    files = {path.name for path in folder.iterdir()} - {records}
    if files - {log} or (log in files and (folder / log).stat().st_size):
        if (folder / RECORDS).exists() and records != RECORDS:
            shutil.rmtree(folder / records, ignore_errors=True)  # of a refused command: those of the run stay
        else:
            keep_configuration(folder)
        return
    for handler in [*logging.root.handlers]:  # what is said from here on is said to people alone
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == (folder / log).absolute():
            logging.root.removeHandler(handler)
            handler.close()
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent == Path.cwd() or any(parent.iterdir()):
            return
        parent.rmdir()


def overrides(arguments: Sequence[str]) -> list[str]:
    """Hydra's overrides from a command line whose first word may be an action, and for `show` the second a number."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return list(arguments)
    action, *rest = arguments
    settings = [f"action={action}"]
    if action == "show" and rest and rest[0].isdecimal():
        settings.append(f"number={rest.pop(0)}")
    return [*settings, *rest]


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


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable of the environment, or unset it, and set it back."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
