"""What is recorded of configuration and code."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from visualchat.cli import provenance as record
from visualchat.cli.config import CONF
from visualchat.cli.provenance import closing_wandb, code_state, record_run, without_places


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package in it, committed."""
    package = tmp_path / "repository" / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q", "repository")
    git(package, "add", ".")
    git(package, "commit", "-qm", "first")
    return package


def test_a_clean_checkout(checkout):
    state, changes = code_state(checkout)
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert state == {"version": state["version"], "commit": commit, "dirty": False, "untracked": 0}
    assert changes == ""


def test_changes_are_kept_as_a_patch_that_applies(checkout):
    """Staged or not, anywhere in the repository."""
    (checkout / "__init__.py").write_text("x = 2\n")
    (checkout.parents[1] / "staged.txt").write_text("ä\n")
    git(checkout, "add", str(checkout.parents[1] / "staged.txt"))
    (checkout / "new.py").write_text("")
    state, changes = code_state(checkout)
    assert (state["dirty"], state["untracked"]) == (True, 1)
    patch = checkout.parents[2] / "changes.diff"
    patch.write_text(changes)
    git(checkout, "reset", "-q", "--hard")
    git(checkout.parents[1], "apply", str(patch))
    assert (checkout / "__init__.py").read_text() == "x = 2\n"
    assert (checkout.parents[1] / "staged.txt").read_text() == "ä\n"


def test_code_that_is_in_no_checkout(tmp_path, checkout):
    """Nor is a package that is installed somewhere below another project's."""
    foreign = checkout / "installed" / "package"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("")
    for folder in (foreign, tmp_path):
        state, changes = code_state(folder)
        assert (state["commit"], state["dirty"], changes) == (None, None, "")


def test_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_state(checkout)[0]["commit"] is None


def test_places_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    node = {"run": [f"{tmp_path}/out/x", {"data": "/somebody/data"}], "n": 1, "far": "/data", "text": "out/x"}
    assert without_places(node) == {"run": ["out/x", {"data": "~/data"}], "n": 1, "far": "/data", "text": "out/x"}


def test_loggers_get_configuration_and_code(tmp_path, checkout, monkeypatch):
    monkeypatch.setattr(record, "PACKAGE", checkout)
    (checkout / "__init__.py").write_text("x = 2\n")
    given = []
    logger = SimpleNamespace(log_hyperparams=given.append)
    record_run(OmegaConf.create({"a": {"b": 1}, "c": "${a.b}"}), tmp_path, [logger, logger])
    state = json.loads((tmp_path / "git.json").read_text())
    assert given == [{"a": {"b": 1}, "c": 1, "code": state}] * 2
    assert "+x = 2" in (tmp_path / "git.diff").read_text()


@pytest.mark.parametrize("fails", [False, True])
def test_the_run_of_wandb_ends_with_the_block(monkeypatch, fails):
    codes = []
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(run=object(), finish=lambda exit_code: codes.append(exit_code))
    )
    if fails:
        with pytest.raises(KeyError), closing_wandb():
            raise KeyError
    else:
        with closing_wandb():
            pass
    assert codes == [int(fails)]


def wandb_settings(sweep, monkeypatch, *overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", ["logger=wandb", *overrides], return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.override_dirname = ",".join(overrides)
        inside = config.hydra.sweep.dir if sweep else "elsewhere"
        config.hydra.runtime.output_dir = str(Path(inside, "run").resolve())
    monkeypatch.setattr(HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)  # put back after the test
    HydraConfig.instance().set_config(config)
    return config.logger.wandb


def test_a_sweep_groups_its_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = wandb_settings(True, monkeypatch, "seed=1", "attention=causal")
    day, time = Path(HydraConfig.get().sweep.dir).parts[-2:]
    assert (settings.group, settings.name) == (f"{day}/{time}", "seed=1,attention=causal")
    assert settings.offline


def test_a_single_run_has_no_group(monkeypatch):
    settings = wandb_settings(False, monkeypatch)
    assert (settings.group, settings.name) == (None, None)
