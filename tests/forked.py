"""Our commands in processes of their own, forked from one that has imported everything.

Importing takes longer than a short training. What must be true of the scripts themselves, and of commands that start
processes or are killed, is tested by typing them (`tests/acceptance/commands.py`).
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([f"visualchat.cli.{name}" for name in ("main", "train", "evaluate", "data", "chat")])


def run(folder: Path, command: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Type one of our commands in a folder and wait for its end, whatever it is.

    Args:
        folder: Where it is typed.
        command: Without `visualchat-`.
        arguments: Its settings.
        typed: What is typed while it runs.
    """
    return called(_typed, command, *arguments, folder=folder, typed=typed)


def called(
    function: Callable[..., None], *arguments: str, folder: Path = Path(), typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module in a process of its own; what it prints is kept.

    Args:
        function: To be called.
        arguments: Its arguments.
        folder: The process's working folder.
        typed: What its standard input holds.
    """
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("in", "out", "err")]
        for stream, text in zip(streams, (typed, "", ""), strict=True):
            stream.write_text(text)
        process = _context.Process(target=_run, args=(function, arguments, folder.absolute(), streams))
        with patch.dict(os.environ, COLUMNS="160"):  # read where modules are imported
            process.start()
        process.join()
        out, err = (stream.read_text(errors="replace") for stream in streams[1:])
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def _run(function: Callable[..., None], arguments: tuple[str, ...], folder: Path, streams: list[Path]) -> None:
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR), number)
    sys.stdin = os.fdopen(0)  # multiprocessing has put nothing in its place
    function(*arguments)


def _typed(command: str, *arguments: str) -> None:
    from visualchat.cli import main

    sys.argv = [str(Path(sys.executable).parent / f"visualchat-{command}"), *arguments]  # which ranks are started by
    getattr(main, command)()
