"""A command that is refused in a folder where a run has been leaves all of that run as it was."""

from pathlib import Path

import pytest

import forked
from visualchat.cli.ending import sole_use

SMALL = ["experiment=smoke", "trainer.accelerator=cpu", "logger=csv", "data.num_workers=0"]


def train(folder: Path, *arguments: str) -> tuple[int, str]:
    done = forked.run(folder, "train", *SMALL, *arguments)
    return done.returncode, done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "train.log")
    }


@pytest.mark.slow
def test_a_refused_command_leaves_the_run_of_the_folder_as_it_was(tmp_path):
    code, said = train(tmp_path, "hydra.run.dir=first")
    assert code == 0, said
    before = contents(tmp_path / "first")
    assert {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "git.json"} <= {*before}
    (tmp_path / "second" / "model").mkdir(parents=True)
    earlier = "of an earlier run: resume it with resume=auto, or choose another folder"
    for typed, told in (
        (["seed=2"], f"first/ holds the checkpoints {earlier}"),
        (
            ["resume=auto", "attention=causal"],
            "the checkpoint is of another model: attention.kind was mmca, now causal",
        ),
        (["resume=nowhere"], "resume=nowhere: there is no such checkpoint or folder"),
        (["resume=first", "hydra.run.dir=second"], f"second/ holds the model {earlier}"),
    ):
        code, said = train(tmp_path, "hydra.run.dir=first", *typed)
        assert (code, told in said) == (2, True), said
        assert contents(tmp_path / "first") == before
    with sole_use(tmp_path / "first"):
        code, said = train(tmp_path, "hydra.run.dir=first", "resume=auto", "seed=2")
    assert (code, "another process is training in first" in said) == (2, True), said
    assert contents(tmp_path / "first") == before
    assert not [*tmp_path.rglob(".hydra.new")]


TYPED = {
    "train": ["experiment=smoke"],
    "evaluate": ["folder=model"],
    "generate": ["input=questions.jsonl"],
    "data": ["stats"],
}


@pytest.mark.slow
def test_no_command_writes_over_what_another_one_has_left(tmp_path):
    """Known by its records, or without them by what it left; nothing is written, not even a log."""
    for holder in TYPED:
        (tmp_path / holder / ".hydra").mkdir(parents=True)
        (tmp_path / holder / ".hydra/hydra.yaml").write_text(f"hydra:\n  job:\n    name: {holder}\n")
        (tmp_path / holder / "metrics.json").write_text("{}")
    for mark in ("train/model", "evaluate/predictions.jsonl", "generate/answers", "data/check.json"):
        (tmp_path / "bare" / mark).mkdir(parents=True)
    pairs = [(name, holder, tmp_path / holder) for name in ("evaluate", "generate") for holder in TYPED]
    pairs += [(name, "evaluate", tmp_path / "evaluate") for name in ("train", "data")]
    pairs += [(name, holder, tmp_path / "bare" / holder) for name, holder in zip(TYPED, [*TYPED][1:], strict=False)]
    before = set(tmp_path.rglob("*"))
    for name, holder, folder in pairs:
        if name == holder:
            continue
        done = forked.run(tmp_path, name, *TYPED[name], f"hydra.run.dir={folder.relative_to(tmp_path)}")
        told = f"{folder.relative_to(tmp_path)}/ holds what visualchat-{holder} has left"
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
        assert set(tmp_path.rglob("*")) == before
