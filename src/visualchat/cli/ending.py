"""How a training command ends early, and that one process at a time trains in a folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from safetensors import SafetensorError

from visualchat.cli.run_folder import FULL, command_to_resume, locked
from visualchat.training.checkpoint_io import manifest
from visualchat.training.ranks import is_first_rank
from visualchat.training.resume import FOLDER, LAST
from visualchat.training.stopping import RankSilent, RunStopped


@contextmanager
def sole_use(run: Path) -> Iterator[None]:
    """Keep other processes from training in the folder `run`; the first rank does, for all.

    Raises:
        ValueError: Another process trains in it.
    """
    if not is_first_rank():
        yield
        return
    with locked(run, "training"):
        yield


@contextmanager
def explained(run: Path) -> Iterator[None]:
    """Turn an early end of the block into a message that says what is kept and how to resume, and into an exit code.

    One of the jobs of a sweep that fails by itself leaves the others to continue.
    """
    try:
        yield
    except KeyboardInterrupt:  # before training, or after it, while the model is saved and evaluated
        if is_first_rank() and (run / FOLDER / LAST).exists():
            print(f"\nstopped by Ctrl-C\n{_how_to_resume(run)}", file=sys.stderr, flush=True)
        raise
    except (RunStopped, OSError, SafetensorError) as error:
        stopped = error if isinstance(error, RunStopped) else _disk_is_full(error)
        if stopped is None:
            raise
        if not is_first_rank():  # the first rank speaks; Lightning would kill it for another's exit code
            raise SystemExit(stopped.code if isinstance(stopped, RankSilent) else 0) from None
        message = f"{stopped}\n{_how_to_resume(run, stopped.instead)}"
        if stopped.code == 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise RunStopped(message) from None
        print(message, file=sys.stderr, flush=True)
        raise SystemExit(stopped.code) from None


def _how_to_resume(run: Path, instead: Mapping[str, object] | None = None) -> str:
    """What is kept of the run, and what to type."""
    last, kept = run / FOLDER / LAST, "no checkpoint was saved"
    if last.exists():
        kept = f"the last checkpoint is of step {manifest(last)['step']}: {os.path.relpath(last)}"
    return f"{kept}\nresume with: {command_to_resume(run, instead)}"


def _disk_is_full(error: OSError | SafetensorError) -> RunStopped | None:
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors has it in words alone
        number = int(told[1])
    if number not in FULL:
        return None
    return RunStopped(f"the run's files could not be written: {error}; make room first")
