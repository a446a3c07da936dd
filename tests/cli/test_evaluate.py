"""visualchat-evaluate as it is typed: killed and continued, its controls, what its table says, settings it refuses."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from offline import read
from PIL import Image

from visualchat.cli.conclusions import require_place
from visualchat.cli.config import CONF
from visualchat.cli.evaluate import STEP, ask, check_what_is_scored
from visualchat.cli.generate import generate
from visualchat.cli.prediction_table import COLUMNS, check_logger
from visualchat.cli.scoring import check_evaluation
from visualchat.data.sources.lazy import LazySequence
from visualchat.dialogue import Dialogue, Turn
from visualchat.evaluation.protocol import Asker
from visualchat.generation.answering import batched
from visualchat.tiny.scenes import draw, random_scene

ENVIRONMENT = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
CONTROLS = ("blind", "permuted", "replaced")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model, processor) -> Path:
    """A saved model whose image tokens are told their number, and dialogues about two images and a third one."""
    folder = tmp_path_factory.mktemp("work")
    make_model(attention_kind="mmca_joint", image_numbers="learned").save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = []
    for number in range(12):
        names = [f"{number}-{k}.png" for k in range(3)]
        for k, name in enumerate(names):
            draw(random_scene(3 * number + k)).save(folder / name)
        images = [{"type": "image", "path": name} for name in names]
        asked = [
            [*images[:2], {"type": "text", "text": "What is in image 1?"}],
            [images[2], {"type": "text", "text": "What is in image 3?"}],
            [{"type": "text", "text": "What is in image 2?"}],
        ]
        messages = [{"role": "user", "content": asked[0]}, {"role": "assistant", "content": "a"}]
        for content in asked[1:]:
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
        rows.append({"id": f"d{number}", "messages": messages})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(*arguments: str) -> list[str]:
    """The line that scores the model of `folder`."""
    data = ["data=own", "data/source=messages", "source.root=.", "source.files=[rows.jsonl]", "data.validation=1.0"]
    small = ["evaluation.batch_size=1", "evaluation.max_new_tokens=4", f"evaluation.controls=[{','.join(CONTROLS)}]"]
    return [str(Path(sys.executable).parent / "visualchat-evaluate"), "folder=model", *data, *small, *arguments]


def left(run: Path) -> dict[str, bytes]:
    """What an evaluation leaves, but Hydra's records of how it was typed."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and ".hydra" not in path.relative_to(run).parts[0] and path.suffix != ".log"
    }


@pytest.mark.slow
def test_a_killed_evaluation_leaves_the_same_files(folder):
    said = subprocess.run(
        command("hydra.run.dir=whole"), cwd=folder, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout
    assert "model, attention=numbered, data=own: 12 dialogues, 36 answers" in said
    assert "answers changed by another image" in said
    metrics = json.loads((folder / "whole/metrics.json").read_text())
    for control in CONTROLS:
        assert {f"{control}/exact_match/all", f"{control}/exact_match/about_3"} <= metrics.keys()
    assert {"replaced/changed/about_it", "replaced/changed/about_others"} <= metrics.keys()
    for _ in range(5):  # until the signal comes before the end
        shutil.rmtree(folder / "run", ignore_errors=True)
        process = subprocess.Popen(command("hydra.run.dir=run"), cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (folder / "run/journal.json").is_file():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        if process.wait() != 0:
            break
    assert process.returncode == -signal.SIGKILL
    written = (folder / "run/predictions.jsonl").read_text().count("\n")
    assert 0 < written < (folder / "whole/predictions.jsonl").read_text().count("\n")
    done = subprocess.run(
        command("hydra.run.dir=run"), cwd=folder, env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    assert "steps are there" in done.stdout
    assert left(folder / "run") == left(folder / "whole")
    line = [command()[0], "predictions=whole", "logger=wandb", "hydra.run.dir=again"]
    subprocess.run(line, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    (offline,) = (folder / "again/wandb").glob("offline-run-*")
    kept = {name: value for row in read(offline)["history"] for name, value in row.items()}
    assert kept["predictions/nrows"] == (folder / "whole/predictions.jsonl").read_text().count("\n")
    assert kept["exact_match/all"] == metrics["exact_match/all"]
    (path,) = (folder / "again").rglob("*.table.json")
    told = json.loads(path.read_text())
    assert told["columns"] == [*COLUMNS]
    assert {"What is in image 2?"} <= {one[COLUMNS.index("question")] for one in told["data"]}


def composed(*overrides: str, of: str = "evaluate"):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(of, [*overrides])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("batch_size=0", "a whole number, at least 1"),
        ("batch_size=2.5", "a whole number, at least 1"),
        ("max_new_tokens=-3", "a whole number, at least 1"),
        ("samples=-1", "a whole number, at least 0"),
        ("most=0", "a whole number, at least 1, or null"),
        ("batch_size=null", "a whole number, at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_by_their_setting(setting, expected):
    with pytest.raises(ValueError, match=rf"^evaluation\.{setting}: expected {expected}$"):
        check_evaluation(composed(f"evaluation.{setting}").evaluation)
    check_evaluation(composed("evaluation.most=null", "evaluation.samples=0").evaluation)


def test_settings_of_another_form_are_refused():
    for name, value in (("metrics", "rouge_l"), ("controls", "blind"), ("modes", "free_running"), ("apart", "x")):
        told = rf"^evaluation\.{name}={value}: expected a list, evaluation\.{name}=\[{value}\]$"
        with pytest.raises(ValueError, match=told):
            check_evaluation(composed(f"evaluation.{name}={value}").evaluation)
    with pytest.raises(ValueError, match=r"^evaluation\.option_likelihood=maybe: expected true or false$"):
        check_evaluation(composed("evaluation.option_likelihood=maybe").evaluation)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["on_error=skip"],
            "on_error=skip belongs to answers=[...], which is not given; for rows of data: data.bad_rows=skip",
        ),
        (["root=x"], "root=x belongs to answers=[...], which is not given; for rows of data: source.root=x"),
        (["input=x.jsonl", "predictions=one"], "input=x.jsonl belongs to answers=[...], which is not given"),
        (["folder=model", "predictions=one"], "folder= and predictions=: only one of them can be scored at a time"),
        (["answers=[a]", "predictions=one"], "predictions= and answers=: only one of them can be scored at a time"),
    ],
)
def test_settings_without_effect_are_refused(settings, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        check_what_is_scored(composed(*settings))
    check_what_is_scored(composed("answers=[a]", "input=x.jsonl", "on_error=skip"))


def test_generation_refuses_them_too(tmp_path):
    for setting in ("batch_size=0", "max_new_tokens=0"):
        with pytest.raises(ValueError, match=rf"^{setting}: expected a whole number, at least 1$"):
            generate(composed("input=rows.jsonl", setting, of="generate"), tmp_path)


def test_images_of_a_corpus_are_held_a_step_at_a_time(tmp_path, model, processor):
    """Dialogues that are made when they are asked for are let go once they are answered, also those of controls."""
    made: list[weakref.ref[Image.Image]] = []
    most: dict[str, list[int]] = {}

    class Corpus(LazySequence[Dialogue]):
        def __len__(self):
            return 4 * STEP

        def item(self, index):
            if index >= len(self):
                raise IndexError(index)
            images = [Image.new("RGB", (16, 16), (index, place, 0)) for place in range(2)]
            made.extend(map(weakref.ref, images))
            return Dialogue((Turn.ask("What is image 1?", images, "so"),), id=f"d{index}")

    class Watching(Asker):
        def predictions(self, dialogues, seen, column, *rest):
            gc.collect()
            most.setdefault(column, []).append(sum(image() is not None for image in made))
            return super().predictions(dialogues, seen, column, *rest)

    answer = batched(model, processor, max_new_tokens=1, batch_size=1)
    small = ["evaluation.batch_size=1", "evaluation.max_new_tokens=1", f"evaluation.controls=[{','.join(CONTROLS)}]"]
    settings = composed(*small).evaluation
    ask(Watching(model.eval(), processor, answer, ["teacher_forced"], 1), {"p": Corpus()}, settings, tmp_path)
    assert {column: len(steps) for column, steps in most.items()} == dict.fromkeys(("tuned", *CONTROLS), 4)
    assert max(max(steps) for steps in most.values()) <= 2 * STEP + 2
    assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 4 * 4 * STEP


def test_figures_of_other_predictions_are_not_written_over(tmp_path):
    evaluated, scored, new = (tmp_path / name for name in ("evaluated", "scored", "new"))
    for path in (evaluated, scored, new):
        path.mkdir()
    for file in (evaluated / "predictions.jsonl", evaluated / "metrics.json", scored / "metrics.json"):
        file.touch()
    for run, predictions in ((new, []), (evaluated, []), (new, [evaluated]), (scored, [evaluated])):
        require_place(run, predictions)
    require_place(evaluated, [evaluated])
    for run, predictions in ((scored, []), (evaluated, [new]), (evaluated, [new, scored])):
        with pytest.raises(ValueError, match="holds the figures of other predictions"):
            require_place(run, predictions)


def test_only_wandb_keeps_an_evaluation_and_only_one():
    check_logger(composed())
    check_logger(composed("logger=wandb"))
    with pytest.raises(ValueError, match="in W&B alone: logger=wandb"):
        check_logger(composed("logger=csv"))
    with pytest.raises(ValueError, match="keeps one evaluation"):
        check_logger(composed("logger=wandb", "predictions=[one,two]"))
