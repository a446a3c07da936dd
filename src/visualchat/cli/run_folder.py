"""The folder of a run: one process at a time writes there, and a run that was stopped continues there."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from visualchat.cli.provenance import RECORDS

LOCK = ".lock"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk that is full says."""

LEFT = {
    "train": ("checkpoints", "model", "light"),
    "evaluate": ("predictions.jsonl", "scores.json", "comparison.html"),
    "generate": ("answers", "answers.csv"),
    "judge": ("verdicts.jsonl",),
    "data": ("check.json", "stats.json"),
}
"""What tells which command a folder without records belongs to, by the command's name."""


def require_own_folder(run: Path, command: str, records: str) -> None:
    """Refuse to write over what another command has left in the folder `run`.

    Args:
        run: The folder.
        command: The name of the command that is about to write there, without `visualchat-`.
        records: Where in the folder its configuration was put so far; removed if it is refused.

    Raises:
        ValueError: The folder is another command's.
    """
    recorded = run / RECORDS / "hydra.yaml"
    if recorded.is_file() and records != RECORDS:
        holder = str(OmegaConf.load(recorded).hydra.job.name)
    else:
        holder = next((name for name, of in LEFT.items() if any((run / one).exists() for one in of)), command)
    if holder != command:
        if records != RECORDS:
            shutil.rmtree(run / records, ignore_errors=True)
        raise ValueError(
            f"{os.path.relpath(run)}/ holds what visualchat-{holder} has left, which visualchat-{command} would write "
            "over: name another folder with hydra.run.dir="
        )


@contextmanager
def locked(run: Path, doing: str) -> Iterator[None]:
    """Keep other processes from the folder `run`.

    Args:
        run: The folder.
        doing: What this process does there, for the others.

    Raises:
        ValueError: Another process is there.
    """
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is {doing} in {os.path.relpath(run)}: wait for its end, or name another folder with "
            "hydra.run.dir="
        ) from None
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)  # a folder that nothing else was left in is removed
        lock.release()


@contextmanager
def continued_by(run: Path) -> Iterator[None]:
    """Turn Ctrl-C and a full disk in the block into the line that continues the run where it was, and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped by Ctrl-C; continue with: {command_to_resume(run, how=())}", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f"the run's files could not be written: {error}; make room first\n"
            f"then continue with: {command_to_resume(run, how=())}",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1) from None


def command_to_resume(
    run: Path, instead: Mapping[str, object] | None = None, how: Sequence[str] = ("resume=auto",)
) -> str:
    """The line that was typed, changed so that it resumes this run, or with the sweep that it belongs to.

    Args:
        run: The run's folder.
        instead: Settings of this run to put in the place of what was typed; a sweep's are its own.
        how: What the command is told beside its folder.
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
    return shlex.join([*_program(), *typed, *changed, f"{key}={place}", *how])


def _program() -> list[str]:
    """How this program was called."""
    script = Path(sys.argv[0])
    if script.suffix == ".py":
        return [_short(sys.executable), "-m", f"visualchat.cli.{script.stem}"]
    return [_short(sys.argv[0])]


def _short(program: str) -> str:
    """A program's name, if that is enough to find it."""
    return Path(program).name if shutil.which(Path(program).name) == program else program
