"""What a run records of itself before it starts: its whole configuration and the state of the code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PACKAGE = Path(__file__).resolve().parents[1]
RECORDS = ".hydra"
"""Where a run keeps its configuration as it was composed and typed."""
CODE = "git.json"
"""Where it keeps the state of the code."""


def keep_configuration(run: Path) -> None:
    """Put what Hydra wrote of the configuration as it started in the place of what is in the folder `run`.

    Until then a command that is refused has not touched the records of a run that is there already.
    """
    written = HydraConfig.get().output_subdir
    if written is not None and written != RECORDS and (run / written).exists():
        shutil.rmtree(run / RECORDS, ignore_errors=True)
        (run / written).rename(run / RECORDS)


def record_run(config: DictConfig, run: Path, loggers: Sequence[Logger]) -> None:
    """Keep configuration and state of the code; to be called by one process.

    In the folder `run` as `git.json`, with `git.diff` where the code differs from its commit, and in every logger.
    """
    state, changes = code_state(PACKAGE)
    (run / CODE).write_text(json.dumps(state, indent=2) + "\n")
    if changes:
        (run / "git.diff").write_text(changes)
    resolved: Any = without_places(OmegaConf.to_container(config, resolve=True))
    for logger in loggers:
        logger.log_hyperparams({**resolved, "code": state})


def record_results(metrics: Mapping[str, float], loggers: Sequence[Logger], step: int) -> None:
    """Give a finished run's figures to every logger, each as `final/<name>`."""
    for logger in loggers:
        logger.log_metrics({f"final/{name}": value for name, value in metrics.items()}, step)


def code_state(package: Path) -> tuple[dict[str, Any], str]:
    """The package's version, commit and cleanliness, and how its tracked files differ from that commit.

    Args:
        package: The folder of the package's code.

    Returns:
        `version`, `commit`, `dirty` and `untracked` (how many files git does not know), of which the last three are
        None where the code is no part of a git checkout; and the changes as a patch, empty for none.
    """
    try:
        installed = version("visualchat")
    except PackageNotFoundError:
        installed = "not installed"
    # An installed package may lie in somebody else's checkout, so its own files must be tracked.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"version": installed, "commit": None, "dirty": None, "untracked": None}, ""
    changes = _git(package, "diff", "--no-color", "--no-ext-diff", "HEAD") or ""
    top = (_git(package, "rev-parse", "--show-toplevel") or "").strip()
    untracked = (_git(Path(top), "ls-files", "--others", "--exclude-standard") or "").splitlines()
    commit = (_git(package, "rev-parse", "HEAD") or "").strip() or None
    return {"version": installed, "commit": commit, "dirty": bool(changes), "untracked": len(untracked)}, changes


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace")


def without_places(node: Any) -> Any:
    """The same containers; absolute paths below the working directory become relative, those below home begin at ~."""
    if isinstance(node, Mapping):
        return {name: without_places(value) for name, value in node.items()}
    if isinstance(node, list):
        return [without_places(value) for value in node]
    if isinstance(node, str) and node.startswith("/"):
        for folder, short in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
            if Path(node).is_relative_to(folder):
                return str(short / Path(node).relative_to(folder))
    return node


@contextmanager
def closing_wandb() -> Iterator[None]:
    """End the W&B run that the block opened, as failed if the block fails; a sweep's next run gets its own."""
    code = 1
    try:
        yield
        code = 0
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=code)
