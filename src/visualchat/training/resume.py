"""Which checkpoint a run goes on from: the newest sound one, whatever a kill or a full disk left of the others."""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Where a run's folder keeps them."""

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
"""The newest, the one before it, and the one with the best validation; the latter is only gone on from if it is named,
because a validation may fall between two optimizer steps, where some gradients are already accumulated."""


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is sound.

    A file is read once as a whole: every part of a torch file carries a checksum. A sharded checkpoint, which is a
    folder, is sound if it holds what is written last.
    """
    if path.is_dir():
        complete = any((path / name).is_file() for name in ("latest", ".metadata"))
        return None if complete else "it is an unfinished folder"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return f"it is cut short or no checkpoint ({error})"
    return None if broken is None else f"its part {broken} is damaged"


def find_checkpoint(resume: str | Path | None, run: Path) -> Path | None:
    """The checkpoint that `resume` means, for a run whose folder is `run`.

    Args:
        resume: None to start afresh; `auto` for the newest of the run's own folder, afresh if it has none; a
            checkpoint; or another run's folder, for its newest. Where the newest is damaged, the one before it is
            taken, with a warning that names both.
        run: The run's folder.

    Raises:
        ValueError: What was asked for does not exist, or nothing of it is sound.
    """
    if resume is None:
        return None
    automatic = str(resume) == "auto"
    path = run if automatic else Path(resume)
    if path.is_file() or (path.suffix == ".ckpt" and path.is_dir()):
        if reason := damage(path):
            raise ValueError(f"resume={resume}: {reason}; name the run's folder to go on from its newest sound one")
        return path
    if not path.is_dir() and not automatic:
        raise ValueError(f"resume={resume}: there is no such checkpoint or folder")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    candidates = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    if not candidates:
        if automatic:
            log.info("no checkpoint in %s yet: starting afresh", folder)
            return None
        raise ValueError(f"resume={resume}: no checkpoint there, expected {LAST} in it or in its {FOLDER}/")
    return _newest_sound(candidates)


def _newest_sound(candidates: list[Path]) -> Path:
    """The first sound one.

    Raises:
        ValueError: None is.
    """
    found: list[str] = []
    for path in candidates:
        if (reason := damage(path)) is None:
            if found:
                log.warning("%s: going on from %s instead", "; ".join(found), path)
            return path
        found.append(f"{path} is not usable: {reason}")
    raise ValueError("; ".join(found))
