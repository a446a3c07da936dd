"""Folders to type commands in, all side by side, so that what names its neighbours by relative paths can be copied."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run
from composing import composed
from filelock import FileLock
from shrinking import small

COUNT = itertools.count()


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """Where they lie; the same for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "folders"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture
def folder(folders) -> Path:
    """An empty one."""
    found = folders / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}-{next(COUNT)}"
    found.mkdir()
    return found


@pytest.fixture(scope="session")
def trained(folders) -> Path:
    """One in which a run of one epoch has ended, made once for all of pytest's processes; not to be changed."""
    line = ["visualchat-train", "trainer.max_epochs=1", "save=both"]
    found = folders / "trained"
    with FileLock(folders / "trained.lock"):
        if not found.exists():
            made = folders / "making"
            made.mkdir()
            run(made, *line, *small(line[0], composed(line))).ok()
            made.rename(found)
    return found


@pytest.fixture
def after_training(folder, trained) -> Path:
    """A folder of one's own in which that run has ended."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def convertible(folder, backbones, make_model, processor) -> Callable[[], None]:
    """Puts a model that the published code has, too, in the place of the run's, and its backbones beside it."""

    def put() -> None:
        (place,) = folder.glob("outputs/*/*/model")
        shutil.rmtree(place)
        make_model(
            projector_type="linear_norm", image_seq_length=5, vision_feature_select_strategy="full"
        ).save_pretrained(place)
        processor.save_pretrained(place)
        shutil.copytree(backbones.vision, folder / "clip")
        shutil.copytree(backbones.language, folder / "llama")

    return put
