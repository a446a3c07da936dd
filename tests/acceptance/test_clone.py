"""A stranger's clone: the lines that begin with `make`, typed in a copy of the repository.

The packages of this environment stand in for an installation, which CI does once in a job of its own; the code is the
clone's.
"""

import shlex
import shutil
from pathlib import Path

import pytest
from commands import assert_learns, make, run, run_folders
from composing import composed, points
from lines import ROOT, all_lines
from shrinking import TALK, small

from test_repository import repository_files

pytestmark = pytest.mark.slow

LINES = [line for line in all_lines() if line.typed and line.words[0] == "make" and line.command()]


@pytest.fixture
def clone(after_training) -> Path:
    """The files that git knows, in a folder in which a run has ended."""
    for path in repository_files():
        copy = after_training / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return after_training


@pytest.mark.parametrize("line", LINES, ids=str)
def test_make_runs_the_command(line, clone):
    command = line.command()
    arguments = [*command[1:], *small(command[0], composed(next(points(command))))]
    before = set(run_folders(clone))
    done = make(clone, line.words[1], f"ARGS={shlex.join(arguments)}", typed=TALK).ok()
    if command[0] == "visualchat-train":
        (left,) = set(run_folders(clone)) - before
        assert_learns(left)
        done = make(clone, "chat", "ARGS=max_new_tokens=4", typed=TALK).ok()
        assert str(left.relative_to(clone)) in done.out, "a chat is with the newest run"
    assert "Image 1 goes with your next question." in done.out


def test_make_runs_the_tests(clone):
    assert "passed" in make(clone, "test", "ARGS=tests/dialogue/test_dialogue.py").ok().out


def test_the_environment_is_made_of_pinned_versions(clone):
    planned = run(clone, "make", "-n", "install", "VENV=elsewhere").ok().out
    assert "pip install" in planned
    assert planned.count("-c constraints.txt") == planned.count("pip install")


def test_a_failed_command_fails_make(clone):
    done = make(clone, "train", "ARGS=attention=mcma")
    assert done.code == 2
    assert "mcma" in done.err
