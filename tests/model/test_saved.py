"""Which saved model a command takes: the one that is named, or the newest."""

import os
from pathlib import Path

import pytest

from visualchat.model.saved import saved_model


def save_model(folder, minute):
    folder.mkdir(parents=True)
    config = folder / "config.json"
    config.write_text("{}")
    os.utime(config, (60 * minute, 60 * minute))


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_newest_under_outputs(work):
    """By time, not by name, and in folders of any depth."""
    save_model(work / "outputs" / "b" / "model", minute=1)
    save_model(work / "outputs" / "sweeps" / "day" / "attention=mmca" / "model", minute=3)
    save_model(work / "outputs" / "z" / "model", minute=2)
    assert saved_model(None) == Path("outputs/sweeps/day/attention=mmca/model")


def test_what_is_no_run_or_unfinished_is_passed_over(work):
    save_model(work / "outputs" / "a" / "model", minute=1)
    save_model(work / "outputs" / "a" / "backbone", minute=3)
    save_model(work / "elsewhere" / "model", minute=3)
    (work / "outputs" / "b" / "model").mkdir(parents=True)
    assert saved_model(None) == Path("outputs/a/model")


def test_the_one_asked_for(work):
    save_model(work / "outputs" / "newest" / "model", minute=2)
    save_model(work / "my model", minute=1)
    assert saved_model("my model") == Path("my model")
    assert saved_model(str(work / "my model")) == work / "my model"


@pytest.mark.parametrize("folder", ["missing", "empty", ""])
def test_a_folder_without_a_model_is_named(work, folder):
    (work / "empty").mkdir()
    with pytest.raises(
        ValueError, match=rf"^folder={folder}: no saved model there \(config\.json or light\.json is missing\)$"
    ):
        saved_model(folder)


@pytest.mark.parametrize("folders", [[], ["outputs"], ["outputs/run/model"]])
def test_without_any_model_the_way_out_is_told(work, folders):
    for folder in folders:
        (work / folder).mkdir(parents=True)
    expected = r"^no saved model under outputs/: train one first \(visualchat-train\), or name one with folder=$"
    with pytest.raises(ValueError, match=expected):
        saved_model(None)
