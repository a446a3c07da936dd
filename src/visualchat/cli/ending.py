"""How a training command ends early, what is typed to resume it, and that one process at a time trains in a folder."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from safetensors import SafetensorError

from visualchat.training.checkpoint_io import manifest
from visualchat.training.ranks import is_first_rank
from visualchat.training.resume import FOLDER, LAST
from visualchat.training.stopping import RankSilent, RunStopped

LOCK = ".lock"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def sole_use(run: Path) -> Iterator[None]:
    """Keep other processes from training in the folder `run`; the first rank does, for all.

    Raises:
        ValueError: Another process trains in it.
    """
    if not is_first_rank():
        yield
        return
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is training in {os.path.relpath(run)}: wait for its end, or name another folder with "
            "hydra.run.dir="
        ) from None
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)  # a folder that nothing else was left in is removed
        lock.release()


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


def command_to_resume(run: Path, instead: Mapping[str, object] | None = None) -> str:
    """The line that was typed, changed so that it resumes this run, or with the sweep that it belongs to.

    Args:
        run: The run's folder.
        instead: Settings of this run to put in the place of what was typed; a sweep's are its own.
    """
    hydra = HydraConfig.get()
    whole = hydra.mode == RunMode.MULTIRUN
    key, folder = ("hydra.sweep.dir", Path(hydra.sweep.dir)) if whole else ("hydra.run.dir", run)
    place = os.path.relpath(folder)
    if not re.fullmatch(r"[\w./+-]+", place):
        place = "'" + place.replace("\\", "\\\\").replace("'", "\\'") + "'"
    other = {} if whole else dict(instead or {})
    replaced = tuple(f"{name}=" for name in (key, "resume", *other))
    typed = [word for word in sys.argv[1:] if not word.lstrip("+").startswith(replaced)]
    changed = [f"{name}={value}" for name, value in other.items()]
    return shlex.join([*_program(), *typed, *changed, f"{key}={place}", "resume=auto"])


def _program() -> list[str]:
    """How this program was called."""
    script = Path(sys.argv[0])
    if script.suffix == ".py":
        return [_short(sys.executable), "-m", "visualchat.cli.train"]
    return [_short(sys.argv[0])]


def _short(program: str) -> str:
    """A program's name, if that is enough to find it."""
    return Path(program).name if shutil.which(Path(program).name) == program else program


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
    if number not in _FULL:
        return None
    return RunStopped(f"the run's files could not be written: {error}; make room first")
