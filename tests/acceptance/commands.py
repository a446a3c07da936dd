"""Types our commands as people do, each in a process of its own, and looks at what they leave.

`run` is for a command that ends by itself, `started` for one that a test interrupts, `bash` for a line copied from a
document or off the screen. All use the console scripts of the environment in which the tests run.
"""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
"""Where this environment keeps its console scripts."""

LIMIT = 300.0
"""Seconds after which a command hangs; generous, because machines are shared."""

SHORT = (
    "trainer.accelerator=cpu",
    "data.train.size=16",
    "data.validation.size=4",
    "data.batch_size=4",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "callbacks.samples=null",
    "evaluation=none",
)
"""Makes a training run on the tiny world last seconds; the loss falls, because the same 16 dialogues come thrice."""

GENERATE = """
import json, sys
from pathlib import Path
import torch
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.light import load_light
from visualchat.tiny.scenes import draw, random_scene

folder = Path(sys.argv[1])
whole = (folder / "config.json").is_file()
model = VisualChatForConditionalGeneration.from_pretrained(folder) if whole else load_light(folder)
processor = VisualChatProcessor.from_pretrained(folder)
images = [draw(random_scene(seed)) for seed in (1, 2)]
inputs = processor(images=images, text="What shape is in image 2?")
with torch.inference_mode():
    logits = model.eval()(**inputs).logits[0, -1].float()
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
json.dump({"logits": logits.tolist(), "tokens": answer.tolist()}, sys.stdout)
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        line: What was typed.
        code: Its exit code; negative for the signal that ended it.
        out: All that it printed to the standard output.
        err: All that it printed to the standard error.
    """

    line: str
    code: int
    out: str
    err: str

    def ok(self) -> "Done":
        """The same, if the command succeeded; fails the test with what it printed otherwise."""
        assert self.code == 0, f"{self}\nexpected exit code 0"
        return self

    def __str__(self) -> str:
        return f"$ {self.line}\n{self.out[-4000:]}\n{self.err[-8000:]}\nexit code {self.code}"


def environment(**variables: str) -> dict[str, str]:
    """The environment of every command: our scripts first, one thread, nothing downloaded, no rank's variables."""
    ours = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "COLUMNS": "120",
    }
    of_ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in of_ranks and not name.startswith(("PYTEST_", "SLURM_", "MAKE", "MFLAGS"))
    }
    return inherited | ours | variables


@contextmanager
def started(folder: Path, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs while the block does, then is killed with all its processes, unless it has ended.

    It leads a process group of its own: `os.killpg(process.pid, signal.SIGINT)` is Ctrl-C. What it prints goes to pipes
    (`process.communicate(timeout=...)`).

    Args:
        folder: Where it is typed.
        words: The command and its arguments; the command is a console script of ours, or any program.
        variables: Of its environment.
    """
    process = subprocess.Popen(
        [str(BIN / words[0]) if (BIN / words[0]).is_file() else words[0], *words[1:]],
        cwd=folder,
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also ranks that outlived the command
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        process.wait()


def run(folder: Path, *words: str, typed: str = "", limit: float = LIMIT, **variables: str) -> Done:
    """Type a command and wait for its end, whatever it is.

    Args:
        folder: Where it is typed.
        words: The command and its arguments.
        typed: What is typed while it runs.
        limit: Seconds after which it is killed and the test fails.
        variables: Of its environment.
    """
    line = " ".join(words)
    with started(folder, *words, **variables) as process:
        try:
            out, err = process.communicate(typed, timeout=limit)
        except subprocess.TimeoutExpired as late:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"$ {line}\n{out[-4000:]}\n{err[-8000:]}\ndid not end in {limit:.0f} s") from late
    return Done(line, process.returncode, out, err)


def bash(folder: Path, line: str, typed: str = "", limit: float = LIMIT, **variables: str) -> Done:
    """Type a line, or a block of lines, into a shell, exactly as it is printed; `run` for the rest."""
    done = run(folder, "bash", "-euc", line, typed=typed, limit=limit, **variables)
    return Done(line, done.code, done.out, done.err)


@contextmanager
def serving(
    folder: Path, *words: str, command: str = "visualchat-serve", **variables: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`visualchat-serve` or `-web` while the block runs: its process, and the address for clients; the port is free.

    Args:
        folder: Where it is typed.
        words: Its settings.
        command: Which of the two.
        variables: Of its environment.
    """
    with started(folder, command, *words, "port=0", **variables) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()  # or its end, if it fails
        found = re.search(r" at (http://\S+)$", said)
        assert found, f"{said}{process.stderr.read()}"
        yield process, found[1]


def make(checkout: Path, *words: str, typed: str = "") -> Done:
    """`make` in a copy of the repository, with this environment as if the copy's own had just been installed."""
    environment = BIN.parent
    installed = ["-o", f"{environment}/.installed", f"VENV={environment}"]
    return run(checkout, "make", *installed, *words, typed=typed, PYTHONPATH=str(checkout / "src"))


def run_folders(folder: Path) -> list[Path]:
    """The folders below `folder` in which a training run or an evaluation ended, the oldest first."""
    return [path.parent for path in sorted(folder.rglob("metrics.json"), key=lambda path: path.stat().st_mtime)]


def only_run(folder: Path) -> Path:
    """The one folder below `folder` in which a run ended."""
    found = run_folders(folder)
    assert len(found) == 1, f"expected one metrics.json under {folder}, found {len(found)}"
    return found[0]


def metrics(run: Path) -> dict[str, float]:
    """The figures of a finished run."""
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


def history(run: Path, name: str = "train/loss") -> dict[int, float]:
    """A metric as the CSV logger kept it: optimizer step -> value, of all steps at which it was logged."""
    with (run / "logs" / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


def assert_finite(figures: Mapping[object, float]) -> None:
    """Fail unless there are figures and all of them are finite."""
    assert figures
    wrong = {name: value for name, value in figures.items() if not math.isfinite(value)}
    assert not wrong, f"not finite: {wrong}"


def assert_learns(run: Path, *, falling: bool = True) -> dict[int, float]:
    """Fail unless all of a run's figures are finite and its training loss falls; returns that loss by step.

    Args:
        run: A finished run that logged at least two steps.
        falling: Whether the loss must fall: the mean of the last third of the logged steps below the first third's.
    """
    losses = history(run)
    assert_finite(losses)
    assert_finite(metrics(run))
    if falling:
        values = [losses[step] for step in sorted(losses)]
        third = max(1, len(values) // 3)
        first, last = sum(values[:third]) / third, sum(values[-third:]) / third
        assert len(values) > 1, f"{run}: one logged step cannot fall"
        assert last < first, f"{run}: the loss does not fall: {values}"
    return losses


def generate(exported: Path) -> tuple[list[int], list[float]]:
    """Load a folder, whole or light, in a bare process and answer a question about two pictures, greedily.

    Returns:
        The tokens of the answer, and the logits of its first token, which are finite.
    """
    with tempfile.TemporaryDirectory() as elsewhere:  # a saved folder must not depend on where it is loaded
        done = run(Path(elsewhere), sys.executable, "-c", GENERATE, str(exported.resolve())).ok()
    answer = json.loads(done.out.splitlines()[-1])
    assert answer["tokens"]
    assert_finite(dict(enumerate(answer["logits"])))
    return answer["tokens"], answer["logits"]
