"""Data of one's own through the commands: judged on itself, with a share or a file held out, and from another model."""

import json
import shlex
from pathlib import Path

import pytest

import forked
from visualchat.data.blend.own import OwnData
from visualchat.data.sources import Messages
from visualchat.tiny.scenes import draw, random_scene

SMALL = [
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "data.num_workers=0",
    "logger=csv",
    "callbacks.samples=null",
    "data.batch_size=4",
]


def write_rows(root: Path, name: str, count: int, first: int = 0) -> None:
    """Dialogues of two rounds about two pictures each; the pictures are files."""
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        names = [f"pictures/{number}_{k}.png" for k in range(2)]
        for k, picture in enumerate(names):
            draw(random_scene(2 * number + k)).resize((90, 70)).save(root / picture)
        content = [{"type": "image", "path": names[0]}, {"type": "text", "text": "Which plant is this?"}]
        again = [{"type": "text", "text": "And this one "}, {"type": "image", "path": names[1]}]
        again += [{"type": "text", "text": "?"}]
        said = [("user", content), ("assistant", f"fern {number % 3}"), ("user", again), ("assistant", "A moss.")]
        rows.append({"id": str(number), "messages": [{"role": role, "content": text} for role, text in said]})
    (root / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def own(root: Path, *files: str) -> list[str]:
    return ["data=own", "data/source=messages", f"source.root={root}", f"source.files=[{','.join(files)}]"]


def run(folder: Path, command: str, *arguments: str, code: int = 0, typed: str = "") -> str:
    """A command in a process of its own; what it printed, once it ended as expected."""
    done = forked.run(folder, command, *arguments, typed=typed)
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A folder with data, in which a run with a validation file ended in `first/`; and what it printed."""
    folder = tmp_path_factory.mktemp("own")
    write_rows(folder / "mine", "rows.jsonl", 12)
    write_rows(folder / "mine", "test.jsonl", 3, first=100)
    files = own(folder / "mine", "rows.jsonl")
    return folder, run(
        folder, "train", *files, "data.validation=test.jsonl", *SMALL, "save=both", "hydra.run.dir=first"
    )


@pytest.mark.slow
def test_a_run_is_judged_on_its_own_data(trained):
    folder, said = trained
    metrics = json.loads((folder / "first" / "metrics.json").read_text())
    for column in ("", "blind/", "untrained/"):
        assert 0.0 < metrics[f"{column}answer_loss/all"] < 20
        assert 0.0 <= metrics[f"{column}token_accuracy/all"] <= 1.0
        assert 0.0 <= metrics[f"{column}exact_match/all"] <= 1.0
    assert metrics["answer_loss/all"] == pytest.approx(metrics["validation/loss"], rel=1e-4)
    assert metrics["answer_loss/all"] < metrics["untrained/answer_loss/all"]
    assert not any("unseen" in name or "colour" in name for name in metrics), "figures of the tiny world"
    assert "data=own: 3 dialogues, 6 answers" in said
    page = (folder / "first" / "samples.html").read_text()
    assert page.count("<section>") == 3
    assert "fern 1" in page
    assert page.count("<figcaption>Image 2</figcaption>") == 3


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["model", "light"])
def test_a_saved_model_is_scored_on_own_data(trained, saved):
    folder, _ = trained
    mine = own(folder / "mine", "rows.jsonl")
    said = run(folder, "evaluate", f"folder=first/{saved}", *mine, "data.validation=test.jsonl", "hydra.run.dir=scores")
    found = json.loads((folder / "scores" / "metrics.json").read_text())
    expected = json.loads((folder / "first" / "metrics.json").read_text())
    for name in ("answer_loss/all", "token_accuracy/all", "exact_match/all", "blind/answer_loss/all"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    for name in ("metrics.json", "samples.html"):
        assert f"scores/{name}" in said
        assert (folder / "scores" / name).is_file()


@pytest.mark.slow
def test_a_model_of_own_data_is_not_scored_on_the_tiny_world_in_silence(trained):
    folder, _ = trained
    said = run(folder, "evaluate", "folder=first/model", code=1)
    (typed,) = (line for line in said.splitlines() if line.startswith("visualchat-evaluate "))
    again = run(folder, "evaluate", *shlex.split(typed)[1:], "hydra.run.dir=again")
    assert "data=own: 3 dialogues, 6 answers" in again
    everything = run(folder, "evaluate", *shlex.split(typed)[1:], "data.validation=1.0", "evaluation.samples=0")
    assert "data=own: 12 dialogues, 24 answers" in everything


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "saved"), [("zero3", "light"), ("zero3", "model"), ("fsdp2", "light")])
def test_two_ranks_start_from_a_folder_as_one_process_does(trained, strategy, saved):
    folder, _ = trained
    mine = [*own(folder / "mine", "rows.jsonl"), "data.validation=test.jsonl", *SMALL, "evaluation=none", "save=light"]
    losses = []
    for name, settings in (("one", ()), (strategy, (f"trainer/strategy={strategy}", "trainer.devices=2"))):
        settings = (
            *settings,
            f"data.batch_size={4 // (1 + bool(settings))}",
            f"hydra.run.dir={strategy}-{saved}/{name}",
        )
        run(folder, "train", *mine, f"init=first/{saved}", *settings)
        losses.append(
            json.loads((folder / f"{strategy}-{saved}" / name / "metrics.json").read_text())["validation/loss"]
        )
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)  # the order of sums over ranks
    started = json.loads((folder / "first" / "metrics.json").read_text())["validation/loss"]
    assert losses[0] < started


def messages(root: Path, name: str) -> Messages:
    return Messages(root, (name,))


@pytest.mark.parametrize("count", [2, 5, 40])
def test_few_rows_leave_no_side_empty(tmp_path, count):
    write_rows(tmp_path, "rows.jsonl", count)
    for seed in range(20):
        found = OwnData(messages(tmp_path, "rows.jsonl"), 0.1, seed=seed)
        sides = [{dialogue.id for dialogue in side} for side in (found.train, found.validation)]
        assert all(sides)
        assert len(sides[0] | sides[1]) == count == len(sides[0]) + len(sides[1])


def test_a_file_of_its_own_validates(tmp_path):
    write_rows(tmp_path, "rows.jsonl", 3)
    write_rows(tmp_path, "test.jsonl", 2, first=10)
    found = OwnData(messages(tmp_path, "rows.jsonl"), "test.jsonl")
    assert [len(side) for side in (found.train, found.validation)] == [3, 2]
    assert list(found.train.parts) == list(found.validation.parts) == ["own"]
    assert [source.report().rows for source in found.sources.values()] == [3, 2]


def read_both(source: Messages, validation: float | str):
    data = OwnData(source, validation)
    return data.train, data.validation


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (
            0.1,
            r"validation holds no dialogue: the source has 1, .* name a file of other dialogues: data.validation=FILE",
        ),
        (1.0, r"train holds no dialogue: the source has 1, split by data.validation=1; .* a share between 0 and 1"),
        ("rows.jsonl", r"data.validation=rows.jsonl: rows.jsonl trains too; name other files, or a share"),
        ("empty.jsonl", r"there is no row; files=.*empty.jsonl"),
    ],
)
def test_data_that_cannot_be_split_say_what_to_type(tmp_path, validation, message):
    write_rows(tmp_path, "rows.jsonl", 1)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=message):
        read_both(messages(tmp_path, "rows.jsonl"), validation)


def test_own_data_need_a_source():
    with pytest.raises(ValueError, match=r"data=own needs a source: say data/source=\.\.\., .* docs/own-data.md"):
        OwnData(None)
