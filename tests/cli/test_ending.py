"""What a run that ends early says and what is typed then; who may train in a folder; which settings may change."""

import errno
import os
import shlex
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from safetensors import SafetensorError

from visualchat.cli import ending
from visualchat.cli.config import CONF
from visualchat.cli.ending import explained, sole_use
from visualchat.cli.run_folder import command_to_resume
from visualchat.training.checkpoint_io import CheckpointFolders
from visualchat.training.resume import require_same_model, settings_of
from visualchat.training.stopping import RankSilent, RunStopped


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Gives a function that plays a command line; the working directory is `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def play(*words, mode=RunMode.RUN, sweep="outputs/sweeps/a"):
        monkeypatch.setattr(sys, "argv", [*words])
        found = SimpleNamespace(mode=mode, sweep=SimpleNamespace(dir=sweep))
        monkeypatch.setattr(HydraConfig, "get", lambda: found)

    return play


@pytest.mark.parametrize("folder", ["outputs/mine", "a b/it's", "outputs/sweeps/x=1,y=[2]", "o/${x}"])
def test_the_command_to_resume_can_be_typed(typed, tmp_path, folder):
    typed("visualchat-train", "trainer.max_epochs=3", "resume=null", "model.language.system='a, b'", "hydra.run.dir=x")
    program, *words = shlex.split(command_to_resume(tmp_path / folder))
    assert program == "visualchat-train"
    assert words[:2] == ["trainer.max_epochs=3", "model.language.system='a, b'"]
    place, resume = OverridesParser.create().parse_overrides(words[2:])
    assert (place.key_or_group, place.value()) == ("hydra.run.dir", folder)
    assert (resume.key_or_group, resume.value()) == ("resume", "auto")


def test_the_command_to_resume_has_what_is_to_change(typed, tmp_path):
    typed("visualchat-train", "optimizer.learning_rate=1", "seed=2", "+optimizer.embedding_learning_rate=4")
    rates = {"optimizer.learning_rate": "0.5", "optimizer.embedding_learning_rate": "2"}
    assert command_to_resume(tmp_path / "mine", rates) == (
        "visualchat-train seed=2 optimizer.learning_rate=0.5 optimizer.embedding_learning_rate=2 hydra.run.dir=mine "
        "resume=auto"
    )
    typed("visualchat-train", "-m", "optimizer.learning_rate=1,2", mode=RunMode.MULTIRUN)
    assert command_to_resume(tmp_path / "mine", rates) == (
        "visualchat-train -m optimizer.learning_rate=1,2 hydra.sweep.dir=outputs/sweeps/a resume=auto"
    )


def test_a_sweep_goes_on_as_a_sweep(typed, tmp_path):
    typed("visualchat-train", "-m", "attention=causal,mmca", mode=RunMode.MULTIRUN)
    command = command_to_resume(tmp_path / "outputs/sweeps/a/attention=causal")
    assert command == "visualchat-train -m attention=causal,mmca hydra.sweep.dir=outputs/sweeps/a resume=auto"


def test_a_module_goes_on_as_a_module(typed, tmp_path):
    typed("/somewhere/visualchat/cli/train.py", "seed=1")
    words = shlex.split(command_to_resume(tmp_path / "run"))
    assert words[1:] == ["-m", "visualchat.cli.train", "seed=1", "hydra.run.dir=run", "resume=auto"]


def test_an_early_end_says_what_is_kept_and_how_to_go_on(typed, tmp_path, capsys, monkeypatch):
    typed("visualchat-train", "seed=1")
    with pytest.raises(SystemExit) as left, explained(tmp_path / "mine"):
        raise RunStopped("stopped by SIGTERM after step 3", 143)
    assert left.value.code == 143
    go_on = "resume with: visualchat-train seed=1 hydra.run.dir=mine resume=auto\n"
    assert capsys.readouterr().err == f"stopped by SIGTERM after step 3\nno checkpoint was saved\n{go_on}"
    CheckpointFolders().save_checkpoint(
        {"global_step": 2, "x": torch.zeros(1)}, tmp_path / "mine/checkpoints/last.ckpt"
    )
    with pytest.raises(SystemExit) as left, explained(tmp_path / "mine"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")
    assert left.value.code == 1
    kept = "the last checkpoint is of step 2: mine/checkpoints/last.ckpt\n"
    said = capsys.readouterr().err
    assert said.startswith("the run's files could not be written: [Errno 28] No space left on device: 'metrics.csv'")
    assert said.endswith(kept + go_on)
    with pytest.raises(SystemExit) as left, explained(tmp_path / "mine"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    said = capsys.readouterr().err
    assert (left.value.code, said.splitlines()[1:]) == (1, [*kept.splitlines(), *go_on.splitlines()])
    with pytest.raises(SafetensorError), explained(tmp_path / "mine"):
        raise SafetensorError("Error while deserializing header: header too large")
    with pytest.raises(FileNotFoundError), explained(tmp_path / "mine"):
        raise FileNotFoundError("another matter")
    with pytest.raises(KeyboardInterrupt), explained(tmp_path / "mine"):
        raise KeyboardInterrupt  # after training: signals mean again what they meant before
    assert capsys.readouterr().err == f"\nstopped by Ctrl-C\n{kept}{go_on}"
    with pytest.raises(KeyboardInterrupt), explained(tmp_path / "nothing here yet"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ending, "is_first_rank", lambda: False)
    with pytest.raises(SystemExit) as left, explained(tmp_path / "mine"):
        raise RunStopped("of all ranks")
    assert left.value.code == 0
    with pytest.raises(SystemExit) as left, explained(tmp_path / "mine"):
        raise RankSilent("the first rank may be the silent one, so this one ends the run")
    assert left.value.code == 1
    assert capsys.readouterr().err == ""


def test_a_job_that_stops_by_itself_leaves_its_sweep_to_go_on(typed, tmp_path):
    typed("visualchat-train", "-m", "seed=1,2", mode=RunMode.MULTIRUN)
    with (
        pytest.raises(RunStopped, match=r"(?s)loss is nan.*resume with: visualchat-train -m seed=1,2"),
        explained(tmp_path),
    ):
        raise RunStopped("the training loss is nan")
    with pytest.raises(SystemExit), explained(tmp_path):
        raise RunStopped("stopped by Ctrl-C", 130)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path, monkeypatch):
    with sole_use(tmp_path):
        with (
            pytest.raises(ValueError, match=r"another process is training in .*: wait for its end, or name"),
            sole_use(tmp_path),
        ):
            pass
        with monkeypatch.context() as other_rank, sole_use(tmp_path / "other"):
            other_rank.setattr(ending, "is_first_rank", lambda: False)
            with sole_use(tmp_path):  # ranks of one run share its folder
                pass
    with sole_use(tmp_path):
        pass


@cache
def settings(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", ["trainer.default_root_dir=here", *overrides])
    parts = OmegaConf.masked_copy(config, ["attention", "model", "optimizer", "seed", "dtype", "trainer"])
    return settings_of(OmegaConf.to_container(parts, resolve=True))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("attention=causal", "attention.kind was mmca, now causal"),
        ("model.language.system=Hi", "model.language.system was Answer questions about the images., now Hi"),
        ("model/projector=linear", "model.projector.type was linear_norm, now linear"),
        ("trainer.precision=bf16-mixed", "trainer.precision was 32-true, now bf16-mixed"),
        ("dtype=bfloat16", "dtype was float32, now bfloat16"),
        ("model/trainable=lora_language", "model.trainable.language was None, now lora"),
    ],
)
def test_another_model_is_refused_by_its_settings(override, told):
    with pytest.raises(ValueError, match="the checkpoint is of another model: ") as refused:
        require_same_model(settings(), settings(override))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.learning_rate=1", ["optimizer.learning_rate was 0.012, now 1"]),
        ("optimizer.betas=[0.9,0.95]", ["optimizer.betas was [0.0, 0.95], now [0.9, 0.95]"]),
        ("trainer.gradient_clip_val=0.5", ["trainer.gradient_clip_val was 1.0, now 0.5"]),
        ("trainer.accumulate_grad_batches=2", ["trainer.accumulate_grad_batches was 1, now 2"]),
        ("attention.implementation=eager", ["attention.implementation was auto, now eager"]),
        ("seed=7", ["seed was 1234, now 7"]),
        ("trainer.max_epochs=9", []),
        ("trainer.devices=2", []),
        ("logger=csv", []),
    ],
)
def test_another_course_is_told(override, told):
    assert require_same_model(settings(), settings(override)) == told
