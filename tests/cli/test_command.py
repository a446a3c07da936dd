"""How the commands start: help and mistakes are answered before anything heavy is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("train", "evaluate", "chat", "data", "plan", "convert", "generate", "serve", "web")

HEAVY = (
    "torch",
    "transformers",
    "lightning",
    "torchmetrics",
    "numpy",
    "PIL",
    "matplotlib",
    "wandb",
    "peft",
    "deepspeed",
)
"""What takes long to import: none of it is needed to say what a command does or which of its settings is misspelt."""


def start(folder: Path, command: str, *arguments: str) -> tuple[int, str, str, list[str]]:
    """A command in a process of its own: exit code, output, errors, and what of `HEAVY` it imported."""
    code = (
        "import atexit, json, sys\n"
        f"sys.argv = ['visualchat-{command}', *{list(arguments)!r}]\n"
        f"atexit.register(lambda: print('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules])))\n"
        f"from visualchat.cli.main import {command}\n"
        f"sys.exit({command}())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    said, _, imported = done.stdout.strip().rpartition("\n")
    return done.returncode, said, done.stderr, json.loads(imported)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_imports_nothing_heavy(tmp_path, command):
    code, said, errors, imported = start(tmp_path, command, "--help")
    assert (code, errors, imported) == (0, "", [])
    assert said.startswith(f"visualchat-{command} ")
    assert "Examples\n" in said
    assert "--cfg job" in said
    assert max(map(len, said.splitlines())) <= 80
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        ("train", "attention=mcma"),
        ("train", "trainer.max_epoch=1"),
        ("plan", "gpuz=8"),
        ("chat", "foldr=x"),
        ("serve", "prt=1"),
        ("serve", "limits.image=1"),
    ],
)
def test_a_misspelt_setting_is_found_before_anything_heavy_is_imported(tmp_path, command, mistake):
    code, _, errors, imported = start(tmp_path, command, mistake)
    assert code != 0
    assert mistake.partition("=")[0] in errors
    assert imported == []
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("chosen", [None, "active"])
def test_threads_wait_without_spinning_unless_asked_to(tmp_path, chosen):
    """What torch will find when the command imports it: `work` stands for a command's own module."""
    (tmp_path / "work.py").write_text("import os\nrun = lambda config: print(os.environ['OMP_WAIT_POLICY'])\n")
    code = (
        "import sys; sys.path.insert(0, '.'); sys.argv = ['visualchat-work', f'hydra.run.dir={sys.argv[1]}']\n"
        "from visualchat.cli.command import Command, start\n"
        "start(Command('plan', 'work', ''))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if chosen is None else {"OMP_WAIT_POLICY": chosen}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == (chosen or "passive"), done.stderr


def test_help_whose_reader_has_seen_enough_ends_in_silence():
    line = [sys.executable, "-c", "from visualchat.cli.main import train; train()", "--help"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()
