"""Every table that a command prints fits 80 columns with nothing of it cut off, at the size of real data and models."""

import re

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from visualchat.cli import data
from visualchat.cli.config import CONF
from visualchat.cli.plan import make_plan
from visualchat.cli.sweep_report import Run, sweep_table
from visualchat.data.inspection.survey import Finding
from visualchat.data.sources.rows import Report
from visualchat.evaluation.report import metrics_table
from visualchat.model.parameters import Part, PartSize
from visualchat.plan.report import show
from visualchat.training.callbacks.parts_table import parts_table

SOURCES = ("llava_dial", "otter_mimicit_cgd", "sparkles_dialogue_cc", "coco_caption_joined")


@pytest.fixture
def narrow(monkeypatch):
    console = Console(width=80, record=True, color_system=None)
    monkeypatch.setattr(data, "console", console)
    return console


def assert_whole(console, *words):
    """Each word is there, if broken then over lines of its column; no line is wider than 80, none ends in dots."""
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    for word in words:
        assert word in printed, printed


def test_what_check_counts(narrow):
    most = {"turns": 2_665_000, "images": 2_665_000, "tokens": 987_654_321, "answer_tokens": 123_456_789, "kept": 1}
    narrow.print(data._totals_table("train", [Finding(0, name, **most) for name in SOURCES]))
    reports = {name: Report(name, 2_665_000, 2_664_000, 2_664_000, rejected={"broken JSON": 1000}) for name in SOURCES}
    data._print_rows(reports)
    assert_whole(narrow, "987654321", "123456789", "2665000", "2664000")


def test_what_stats_measures(narrow, tmp_path):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("data_tool", ["action=stats", "data.train.size=6", "data.validation.size=3"])
    data.stats(config, tmp_path)
    assert_whole(narrow, "train: 6 dialogues", "answer tokens", "in a dialogue")


def test_what_evaluation_scores(narrow):
    kinds = ("all", "which", "composition_of_pictures", "images_11")
    figures = {f"{part}exact_match/{kind}": 1.0 for kind in kinds for part in ("", "otter_mimicit_cgd/")}
    figures |= {"answer_loss/all": 12.345, "token_accuracy/all": 1.0}
    narrow.print(metrics_table(dict.fromkeys(("tuned", "untrained", "blind", "captions"), figures)))
    assert_whole(narrow, "otter_mimicit_cgd", "composition of pictures", "answer loss, nats a token", "captions")


def test_the_parts_of_a_model(narrow):
    held = (68_976_648_192, 68_976_648_192, ("bfloat16", "uint8"))
    parts = [PartSize(part, *held) for part in (*Part,)[:6]]
    narrow.print(parts_table(parts))
    assert_whole(narrow, "68,976,648,192", "bfloat16, uint8", "413,859,889,152")


def test_the_runs_of_a_sweep(narrow):
    metrics = {"exact_match/all": 1.0, "seen/exact_match/all": 1.0, "unseen/exact_match/all": 1.0}
    metrics |= {"answer_loss/all": 12.345, "token_accuracy/all": 1.0, "train/seconds": 123456.0}
    runs = [
        Run({"attention": kind, "model/trainable": "projector_embedding", "optimizer.learning_rate": rate}, metrics)
        for kind in ("mmca_reference", "causal")
        for rate in ("1.2e-2", "6.0e-3")
    ]
    narrow.print(sweep_table([*runs, Run({**runs[0].overrides, "optimizer.learning_rate": "1"}, {}, "unfinished")]))
    assert_whole(narrow, "causal", "1.2e-2", "12.345", "123456", "unfinished")


@pytest.mark.parametrize("experiment", ["own_8gpu", "paper_5_2_3"])
def test_what_a_run_takes(narrow, experiment):
    """Days on 8 GPUs of a language model with 70 billion parameters, with all options."""
    own = ["data/source=messages", "source.root=.", "source.files=[x.jsonl]"] if experiment.startswith("own") else []
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("plan", [f"experiment={experiment}", "gpus=8", *own], return_hydra_config=True)
    show(make_plan(config, dict(config.hydra.runtime.choices)), narrow)
    printed = narrow.export_text(clear=False)
    tables = [line for line in printed.splitlines() if re.search("[│┃━─]", line)]
    assert len(tables) > 40
    assert max(map(len, tables)) <= 80
    assert "…" not in printed
    assert "ways to a step" in printed
