"""Checkpoints on the disk: written beside their place, synced, sealed by a manifest, and renamed when complete.

A checkpoint is a folder, whatever the strategy: one file `state.pt`, or what DeepSpeed writes, and `manifest.json`,
written last, with the size and the sha256 of every other file, the optimizer step and the settings of the run.
Nothing goes through another folder, and nothing is unpickled that could run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

MANIFEST, STATE = "manifest.json", "state.pt"


class CheckpointFolders(CheckpointIO):
    """Lightning's plugin that saves and loads checkpoints.

    The option `previous` of a save is where the checkpoint goes that the new one replaces; without it that one is
    dropped. At any moment of a save one of them is complete under its name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint of one process.

        Raises:
            OSError: The disk does not take it; what was there is as it was.
        """
        part = begin(path)
        try:
            write(checkpoint, part / STATE)
            finish(part, path, checkpoint, storage_options)
        except OSError:
            remove(part)  # it makes room
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint, on the CPU. It holds tensors and plain containers; a file with anything else is refused."""
        with nothing_but_tensors():
            return torch.load(Path(path) / STATE, map_location="cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        remove(Path(path))


def begin(path: str | Path) -> Path:
    """An empty folder in which the checkpoint that is to be `path` can be written."""
    part = Path(path).with_suffix(".part")
    remove(part)  # of a save that was cut short
    part.mkdir(parents=True)
    return part


def write(value: Any, path: str | Path) -> None:
    """`torch.save`, but a disk that does not take it is an OSError that names the cause.

    Raises:
        OSError: The disk does not take it.
    """
    with Path(path).open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's own, on top of the cause
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def finish(
    part: Path, path: str | Path, checkpoint: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> None:
    """Seal what is in `part` and put it in its place; see `CheckpointFolders` for the options."""
    previous = (options or {}).get("previous")
    path = Path(path)
    files = {
        str(file.relative_to(part)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(part.rglob("*"))
        if file.is_file()
    }
    manifest = {"step": checkpoint.get("global_step"), "settings": checkpoint.get("settings"), "files": files}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for written in (*part.rglob("*"), part):
        sync(written)
    if previous is not None and path.exists():
        move(path, Path(previous))
    move(part, path)
    sync(path.parent)


def manifest(path: Path) -> dict[str, Any]:
    """What the manifest of a sound checkpoint says."""
    content: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return content


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is there and is what was written.

    All of it is read once.
    """
    if not path.is_dir():
        return "it is not a folder with a manifest, as checkpoints are"
    try:
        files = manifest(path)["files"]
        noted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last: it was never finished, or is not a checkpoint"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    files_there = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    if odd := sorted(files_there ^ noted.keys()):
        return f"its files are not those of its {MANIFEST}: {', '.join(odd)} missing or surplus"
    for name, (size, digest) in noted.items():
        if (path / name).stat().st_size != size:
            return f"its file {name} has {(path / name).stat().st_size} bytes, {size} were written"
        if sha256(path / name) != digest:
            return f"its file {name} is not what was written"
    return None


@contextmanager
def nothing_but_tensors(*types: type) -> Iterator[None]:
    """Inside, `torch.load` makes tensors, plain containers and the given types only, whatever its caller allows.

    Raises:
        ValueError: A file holds anything else.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch for code that one does not write oneself
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([*types]):
            yield
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"the checkpoint holds more than numbers ({kind[1] if kind else error}) and so could run code: "
            "it is not loaded"
        ) from None
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def move(source: Path, target: Path) -> None:
    """Put the folder `source` in the place of `target`, which may exist."""
    aside = target.with_suffix(".old")
    remove(aside)
    if target.exists():
        target.rename(aside)
    source.rename(target)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
