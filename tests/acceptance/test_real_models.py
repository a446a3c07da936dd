"""Every documented training of a real language model names its data and fits its GPUs, as the planner counts."""

import pytest
from composing import composed, points
from hydra import compose, initialize_config_dir
from lines import Line, all_lines

from visualchat.cli.config import CONF
from visualchat.cli.plan import make_plan, verdict


def real_runs() -> list[tuple[Line, list[str]]]:
    """Lines that train a language model of somebody's files, and the first of the single runs each comes to."""
    found = []
    for line in all_lines():
        command = line.command()
        if command and command[0] == "visualchat-train" and not {"--help", "--version"} & set(command):
            point = next(iter(points(command)))
            if isinstance(composed(point).model.language.path, str):
                found.append((line, point))
    return found


RUNS = real_runs()


def test_there_are_such_lines():
    assert len(RUNS) > 8
    assert {line.document for line, _ in RUNS} >= {"README.md", "docs/scaling.md", "docs/own-data.md"}


@pytest.mark.parametrize(("line", "point"), RUNS, ids=[str(line) for line, _ in RUNS])
def test_it_names_its_data(line, point):
    config = composed(point)
    assert not config.hydra.runtime.choices["data"].startswith("tiny")
    assert config.hydra.runtime.choices.evaluation in ("default", "none")


@pytest.mark.slow
@pytest.mark.parametrize(("line", "point"), RUNS, ids=[str(line) for line, _ in RUNS])
def test_it_fits(line, point):
    words = [word for word in point[1:] if not word.startswith(("hydra.", "resume=", "init="))]
    devices = composed(point).trainer.devices
    machine = 8 if devices == "auto" else devices  # all GPUs of a machine
    gpus = [] if any("experiment=own" in word for word in words) else [f"gpus={machine}"]
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("plan", [*words, *gpus], return_hydra_config=True)
    found = make_plan(config, dict(config.hydra.runtime.choices))
    assert verdict(found).startswith("As configured it fits"), verdict(found)
