"""Every documented training of a real language model names its data and fits its GPUs, as the planner counts."""

import pytest
from composing import composed, points
from hydra import compose, initialize_config_dir
from lines import all_lines

from visualchat.cli.config import CONF
from visualchat.cli.plan import make_plan
from visualchat.plan.report import verdict


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, ...], set[str]]:
    """What trains a language model of somebody's files: the first of the runs of each line, and where it stands."""
    found: dict[tuple[str, ...], set[str]] = {}
    for line in all_lines():
        command = line.command()
        if not any(word.startswith(("model", "experiment", "scale")) for word in command or ()):
            continue  # the tiny one
        if command[0] == "visualchat-train" and not {"--help", "--version"} & set(command):
            point = next(iter(points(command)))
            if isinstance(composed(point).model.language.path, str):
                found.setdefault(tuple(point), set()).add(line.document)
    return found


def test_there_are_such_runs(runs):
    assert len(runs) > 8
    assert set().union(*runs.values()) >= {"README.md", "docs/scaling.md", "docs/own-data.md"}


def test_they_name_their_data(runs):
    for point in runs:
        choices = composed(point).hydra.runtime.choices
        assert not choices["data"].startswith("tiny"), point
        assert not choices.evaluation.startswith("tiny"), point


def planned(point: tuple[str, ...]) -> tuple[str, ...]:
    """What the planner is told of a run."""
    words = [word for word in point[1:] if not word.startswith(("hydra.", "resume=", "init="))]
    devices = composed(point).trainer.devices
    machine = 8 if devices == "auto" else devices  # all GPUs of a machine
    gpus = [] if any("experiment=own" in word for word in words) else [f"gpus={machine}"]
    return (*words, *gpus)


@pytest.mark.slow
def test_they_fit(runs):
    for words in {planned(point) for point in runs}:
        with initialize_config_dir(CONF, version_base="1.3"):
            config = compose("plan", [*words], return_hydra_config=True)
        found = make_plan(config, dict(config.hydra.runtime.choices))
        assert verdict(found).startswith("As configured it fits"), f"{' '.join(words)}: {verdict(found)}"
