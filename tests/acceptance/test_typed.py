"""Every command line of the documents runs, made small by overrides behind it, and does what it is for.

So does every command that it prints for its reader to type next. A line that cannot run here is named by a rule with
its reason (shrinking.CANNOT); one that no rule covers fails.
"""

import json
import math
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import LIMIT, Done, assert_finite, assert_learns, bash, history, metrics, run, run_folders, serving
from composing import axes, composed, points
from lines import Line, all_lines
from made import conversations, corpora, own_rows
from omegaconf import DictConfig
from openai import OpenAI
from shrinking import CANNOT, ELSEWHERE, TALK, filled, small

pytestmark = pytest.mark.slow

LINES = [line for line in all_lines() if line.typed]
LAUNCHERS = ("make", "torchrun", "srun")


def reason(line: Line) -> str | None:
    """Why a line is not typed here; None if it is."""
    return next((why for text, why in {**CANNOT, **ELSEWHERE}.items() if re.search(text, " ".join(line.words))), None)


def content(line: Line) -> set[str]:
    """A line's words, whatever its reader's own folders and files are called."""
    words = (re.sub(r"^(source\.(?:root|files))=.*|((?:^|=)outputs)/[\w.]+", r"\1\2", word) for word in line.words)
    return {word for word in words if word != "..."}


def running() -> list[Line]:
    """What is typed: each line but those of which all words stand in another that is."""
    found: list[Line] = []
    for line in sorted(LINES, key=lambda line: len(content(line)), reverse=True):
        covered = any(content(line) <= content(other) for other in found)
        if reason(line) is None and line.words[0] not in LAUNCHERS and not covered:
            found.append(line)
    return found


@pytest.mark.parametrize("text", [*CANNOT, *ELSEWHERE])
def test_each_rule_of_what_is_not_typed_is_of_use(text):
    assert any(re.search(text, " ".join(line.words)) for line in LINES), f"no line is kept from running by {text}"


@pytest.mark.parametrize("line", running(), ids=str)
def test_the_line_runs(line, after_training, convertible):
    folder = after_training
    if line.words[0] == "visualchat-convert":
        convertible()
    before, command = set(run_folders(folder)), filled(line.command(), folder)
    if "--help" in command:
        assert command[0] in run(folder, *command).ok().out
        return
    config = composed(next(points([*command, "..."])))
    give(folder, command, config)
    if command[0] in ("visualchat-serve", "visualchat-web"):
        assert_serves(folder, command[0], [*command[1:], *small(command[0], config)], dict(line.variables))
        return
    done = run(folder, *command, *small(command[0], config), typed=TALK, **dict(line.variables)).ok()
    assert "Traceback" not in done.err
    left = [path for path in run_folders(folder) if path not in before]
    assert_outcome(folder, command, config, left, done)
    for shown in printed(done):
        assert "Traceback" not in bash(folder, shown, typed=TALK).ok().err


def give(folder: Path, command: Sequence[str], config: DictConfig) -> None:
    """What the line expects its reader to have."""
    if "source" in config and "root" in config.source:
        files = config.source.get("files", [])
        for name in [files] if isinstance(files, str) else files:
            own_rows(folder / config.source.root, name)
    if command[0] == "visualchat-generate":
        conversations(folder / config.input)
    if "blend" in config:
        corpora(folder / "datasets")
    if "from_published" in command:
        (model,) = folder.glob("outputs/*/*/model")
        run(
            folder, "visualchat-convert", "to_published", f"folder={model.relative_to(folder)}", f"file={config.file}"
        ).ok()


def printed(done: Done) -> list[str]:
    """The commands that a command has printed for its reader to type: each stands at the end of a line, or alone."""
    return re.findall(r"(?:^|\s)(visualchat-\w+ .*\S)\s*$", done.out, re.MULTILINE)


def assert_outcome(folder: Path, command: Sequence[str], config: DictConfig, left: Sequence[Path], done: Done) -> None:
    """Fail unless a command has left and said what it is for."""
    name = command[0]
    if name == "visualchat-train":
        assert len(left) == math.prod(len(values) for values in axes([*command, "..."]).values())
        for path in left:
            assert_learns(path, falling=not config.get("resume"))
        assert printed(done), "training says how to chat with the model"
        if len(left) == 1 and config.trainer.devices not in (1, "auto"):
            assert_equals_one_process(folder, command, config, left[0])
    elif name == "visualchat-evaluate":
        assert_finite(metrics(*left))
        assert (left[0] / "samples.html").is_file()
        assert (left[0] / "report.html").is_file()
    elif name == "visualchat-generate":
        (table,) = folder.glob("outputs/answers/*/*/answers.csv")
        assert len(table.read_text(encoding="utf-8").splitlines()) > 6
    elif name == "visualchat-study":
        (page,) = folder.glob("docs/results/*.md")
        assert "2 of 2 runs so far" in page.read_text(encoding="utf-8")
    elif name == "visualchat-chat":
        assert "Image 1 goes with your next question." in done.out
    elif name == "visualchat-data":
        left_behind = {"check": "check.json", "references": "references.html", "show": "*.html"}[command[1]]
        (page,) = folder.glob(f"outputs/data/*/*/{left_behind}")
        if page.name == "check.json":
            assert not json.loads(page.read_text())["bad"]
    elif name == "visualchat-convert":
        assert (folder / (config.folder if command[1] == "from_published" else config.file)).exists()
    else:
        assert name == "visualchat-plan", f"no rule says what {name} is for"
        assert re.search("it (fits|does not fit)", done.out)


def assert_serves(folder: Path, command: str, settings: Sequence[str], variables: dict[str, str]) -> None:
    """Fail unless a server answers a client, with its key, and ends when it is asked to."""
    with serving(folder, *settings, command=command, **variables) as (process, address):
        client = OpenAI(base_url=address, api_key=variables.get("VISUALCHAT_API_KEYS", "none").split(",")[0])
        model, *_ = client.models.list()
        answer = client.chat.completions.create(model=model.id, messages=[{"role": "user", "content": "What is it?"}])
        assert answer.usage.completion_tokens
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, err) == (0, ""), f"{out}{err}"


ALONE = ("trainer/strategy=auto", "trainer.devices=1", "trainer.num_nodes=1", "hydra.run.dir=alone")


def assert_equals_one_process(folder: Path, command: Sequence[str], config: DictConfig, left: Path) -> None:
    """Fail unless the losses of a run of two processes are those of one process with batches of the same rows."""
    shrunk = small(command[0], config)
    *_, rows = (int(word.partition("=")[2]) for word in shrunk if word.startswith("data.batch_size="))  # the last holds
    run(folder, *command, *shrunk, *ALONE, f"data.batch_size={2 * rows}").ok()
    tolerance = 1e-4 if config.trainer.precision == "32-true" and config.dtype == "float32" else 0.05  # 8 bits of bf16
    assert history(left) == pytest.approx(history(folder / "alone"), rel=tolerance)
