"""The commands as people run them: train, evaluate, chat and a sweep, on the tiny world, shortened."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from offline import read
from PIL import Image

import forked
from visualchat.evaluation.report import LEGEND, legend
from visualchat.training.callbacks.samples import SampleRow

TRAINING = (
    "train/loss",
    "train/gradient_norm",
    "lr/embedding",
    "speed/tokens_per_second",
    "speed/images_per_second",
    "data/padding",
    "data/answer_tokens",
    "memory/main_gb",
)
"""Metrics of every log step, whatever the sources."""


def run(folder: Path, command: str, *arguments: str, typed: str = "") -> str:
    """A command in a process of its own; its output, once it has succeeded."""
    done = forked.run(folder, command, *arguments, typed=typed)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, str]:
    """The folder in which a short training ran, the run's own folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("work")
    said = run(folder, "train", "experiment=smoke", "save=both")
    (found,) = folder.glob("outputs/*/*/metrics.json")
    return folder, found.parent, said


def test_training_leaves_what_it_promises(trained):
    folder, left, said = trained
    metrics = json.loads((left / "metrics.json").read_text())
    for column in ("", "untrained/", "blind/", "captions/"):
        assert 0.0 <= metrics[f"{column}exact_match/all"] <= 1.0
    assert metrics["train/steps"] == 3
    with Image.open(left / "curves.png") as picture:
        assert picture.width > 500
    assert (left / "samples.html").read_text().count("<section>") == 2
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (left / "checkpoints").iterdir()}
    assert list((left / "logs" / "tensorboard").glob("events.*"))
    assert "held-out dialogues, attention=mmca" in said
    assert re.search(r"shares in % +┃ +tuned +┃ +untrained +┃ +blind +┃ +captions", said)
    assert legend(LEGEND) in said.splitlines()
    assert f"visualchat-chat folder={left.relative_to(folder)}/model" in said


GOOD_RUN = [
    r"the run's folder: outputs/[\d/-]+/",
    r" +the model +",
    r"[┏┡├└].*",
    r"[┃│] (part|vision encoder|token embedding|language model|language head|projector|all) .*",
    r"100 %  step 4/4  .*",
    r"tuned in \d+ s; everything is in outputs/[\d/-]+/",
    r"  metrics.json  the figures",
    r"  curves.png    the curves",
    r"  model/        the model; chat with it: make chat, or",
    r" +visualchat-chat folder=outputs/[\d/-]+/model",
]
"""All that a run without an evaluation prints where nobody watches, line by line."""


@pytest.mark.slow
def test_a_good_run_prints_only_what_its_reader_can_use(tmp_path):
    (tmp_path / "plain").mkdir()
    command = ["data.train.size=64", "trainer.max_epochs=1", "evaluation=none"]
    printed = [line for line in _all_printed(tmp_path / "plain", *command).splitlines() if line.strip()]
    assert [line for line in printed if not any(re.fullmatch(known, line) for known in GOOD_RUN)] == []
    assert [known for known in GOOD_RUN if not any(re.fullmatch(known, line) for line in printed)] == []
    others = _all_printed(tmp_path, *command, "model/quantization=nf4", "save=light", "logger=wandb")
    assert not re.search("anonymous|kernels-community|Setting accelerator", others)
    assert "wandb: Run summary" in others  # W&B's own words on the run stay


def _all_printed(folder: Path, *arguments: str) -> str:
    """Both streams of a training command that succeeded."""
    done = subprocess.run(
        [sys.executable, "-m", "visualchat.cli.train", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("saved", ["model", "light"])
def test_evaluation_agrees_with_the_training_run(trained, saved):
    folder, left, _ = trained
    sizes = ["evaluation.dialogues.seen.size=4", "evaluation.dialogues.unseen.size=2", "evaluation.samples=1"]
    named = [] if saved == "model" else [f"folder={left / saved}"]  # the whole model is what is taken unasked
    said = run(folder, "evaluate", *sizes, *named, f"hydra.run.dir=outputs/evaluated/{saved}")
    assert "attention=mmca" in said
    assert re.search(r"shares in % +┃ +tuned +┃ +free +┃ +blind", said)
    assert legend(["tuned", "free", "blind"]) in said.splitlines()
    assert f"  outputs/evaluated/{saved}/metrics.json  the figures" in said.splitlines()
    found = folder / "outputs" / "evaluated" / saved / "metrics.json"
    metrics, expected = json.loads(found.read_text()), json.loads((left / "metrics.json").read_text())
    assert "exact_match/all" in metrics
    assert "blind/exact_match/all" in metrics
    scored = {name for name in expected if re.match(r"(blind/)?((un)?seen/)?(exact_match|answer_loss|token_acc)", name)}
    assert {name: metrics.get(name) for name in scored} == {name: expected[name] for name in scored}
    assert {name.split("/")[0] for name in metrics.keys() - scored} <= {"free", "exact_match", "blind", "cut"}
    assert all(
        "distance" in name or "about" in name
        for name in metrics.keys() - scored
        if name.startswith(("exact_match", "blind/e"))
    )
    if saved == "light":
        return
    said = run(folder, "evaluate", f"predictions={found.parent.relative_to(folder)}", "hydra.run.dir=outputs/again")
    for name in ("metrics.json", "scores.json", "accuracy.png"):
        assert (folder / "outputs/again" / name).read_bytes() == (found.parent / name).read_bytes()


def test_chat_takes_images_in_any_round(trained, tmp_path):
    folder, left, _ = trained
    picture = tmp_path / "a picture.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    typed = f"/image {picture}\nWhat color is it?\nAnd now?\n/draw 3\nWhich image has a circle?\n/quit\n"
    said = run(folder, "chat", "max_new_tokens=4", typed=typed)
    assert f"{left.relative_to(folder)}/model, attention=mmca" in said
    assert "Image 1 goes with your next question." in said
    assert "Image 2 goes with your next question." in said


def test_a_sweep_is_compared(trained):
    folder, _, _ = trained
    said = run(folder, "train", "-m", "experiment=smoke", "attention=causal,mmca", "trainer.max_epochs=1,2")
    assert "sweep (exact match in %)" in said
    (table,) = folder.glob("outputs/sweeps/*/*/sweep.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["attention"], row["trainer.max_epochs"]) for row in rows] == [
        ("causal", "1"),
        ("causal", "2"),
        ("mmca", "1"),
        ("mmca", "2"),
    ]
    assert [float(row["train/steps"]) for row in rows] == [3, 6, 3, 6]
    assert {row["state"] for row in rows} == {"finished"}
    assert len(list(table.parent.glob("*/metrics.json"))) == 4
    with Image.open(table.with_name("sweep.png")) as picture:
        assert picture.width > 500


def test_wandb_logs_offline(trained):
    folder, _, _ = trained
    sizes = ["data.train.parts.pictures.size=4", "data.train.parts.captions.size=2", "data.batch_size=2"]
    sizes += ["data.validation.parts.pictures.size=2", "data.validation.parts.captions.size=2"]
    sizes += ["trainer.max_epochs=1", "trainer.log_every_n_steps=1", "trainer.max_steps=3", "evaluation.captioned=null"]
    sizes += ["evaluation.dialogues.seen.size=4", "evaluation.dialogues.unseen.size=2"]
    run(folder, "train", "data=tiny_mixed", "logger=wandb", "callbacks.samples.count=3", "hydra.run.dir=wb", *sizes)
    (left,) = (folder / "wb" / "wandb").glob("offline-run-*")
    found = read(left)
    assert (found["group"], found["project"], found["exit"]) == ("", "visualchat", 0)
    assert found["name"].startswith("callbacks.samples.count=3,")
    assert found["config"]["attention"]["kind"] == "mmca"
    assert found["config"]["logger"]["wandb"]["save_dir"] == "wb"
    assert found["config"]["code"] == json.loads((folder / "wb" / "git.json").read_text())
    steps: dict[str, list] = {}
    for row in found["history"]:
        for name in row:
            steps.setdefault(name, []).append(row.get("trainer/global_step"))
    for name in TRAINING:
        assert steps[name] == [0, 1, 2], name
    for name in ("loss", "exact_match"):
        assert [steps[f"validation/{name}{source}"] for source in ("", "/pictures", "/captions")] == [[2]] * 3
    assert {"train/loss/pictures", "train/loss/captions", "validation/samples/path", "train/gradient_norm"} <= set(
        steps
    )
    assert steps["final/exact_match/all"] == [3]
    (table,) = left.glob("files/media/table/validation/*.json")
    answers = json.loads(table.read_text())
    assert answers["columns"] == list(SampleRow._fields)
    assert sum(row[answers["columns"].index("round")] == 1 for row in answers["data"]) == 3
    assert len(list((folder / "wb" / "samples").glob("*.html"))) == 1


@pytest.mark.slow
def test_a_failed_run_does_not_vanish_from_its_sweep(tmp_path):
    """The others go on, each a run of W&B of its own and all in one group; the command fails in the end."""
    arguments = ["-m", "experiment=smoke", "logger=wandb", "evaluation.captioned=null", "callbacks.samples=null"]
    rates = "optimizer.learning_rate=0.001,1e30,0.002"
    with pytest.raises(AssertionError, match="training loss is nan"):
        run(tmp_path, "train", *arguments, rates, "hydra.sweep.dir=sweeps/one")
    with (tmp_path / "sweeps" / "one" / "sweep.csv").open() as file:
        states = {float(row["optimizer.learning_rate"]): row["state"] for row in csv.DictReader(file)}
    assert states == {0.001: "finished", 1e30: "failed", 0.002: "finished"}
    (failed,) = tmp_path.rglob("failed.txt")
    assert "training loss is nan" in failed.read_text()
    runs = [read(folder) for folder in sorted(tmp_path.rglob("offline-run-*"))]
    assert [run["group"] for run in runs] == ["sweeps/one"] * 3
    exits = {run["config"]["optimizer"]["learning_rate"]: run["exit"] for run in runs}
    assert exits == {0.001: 0, 1e30: 1, 0.002: 0}
    assert all("optimizer.learning_rate" in run["name"] for run in runs)


def test_resuming_goes_on_from_a_checkpoint(trained):
    folder, left, _ = trained
    checkpoint = left / "checkpoints" / "last.ckpt"
    run(folder, "train", "experiment=smoke", "trainer.max_epochs=2", f"resume={checkpoint}", "hydra.run.dir=resumed")
    assert json.loads((folder / "resumed" / "metrics.json").read_text())["train/steps"] == 6


def test_a_finished_run_that_is_started_again_stays_as_it_is(trained):
    folder, left, _ = trained
    before = {path: path.read_bytes() for path in (left / "metrics.json", left / "samples.html", left / "curves.png")}
    said = run(folder, "train", "experiment=smoke", "save=both", "resume=auto", f"hydra.run.dir={left}")
    assert "is already finished: left unchanged" in said
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_checkpoint_of_another_base_is_refused(trained):
    folder, left, _ = trained
    arguments = ["experiment=smoke", f"resume={left / 'checkpoints' / 'last.ckpt'}", "model/language=tiny_causal"]
    with pytest.raises(AssertionError, match="the checkpoint belongs to another base: it was trained"):
        run(folder, "train", *arguments)
