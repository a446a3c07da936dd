"""Jobs of a sweep that need processes of their own.

Lightning starts the other ranks by running the command once more. In a Hydra multirun that command is the whole sweep,
and what the first job leaves behind (environment variables, process groups) would spoil the second. So such a job is
one command of its own, the very command that a person would type, and the sweep waits for it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from visualchat.cli.run_folder import command_to_resume
from visualchat.training.stopping import SIGNALS


def needs_own_processes(config: DictConfig) -> bool:
    """Whether this is a job of a sweep, and one with more than this process or with a strategy that leaves a state."""
    trainer = config.trainer
    alone = trainer.strategy == "auto" and trainer.devices == 1 and trainer.get("num_nodes", 1) == 1
    return HydraConfig.get().mode == RunMode.MULTIRUN and not alone


def job_command(module: str, run: Path) -> list[str]:
    """The command of the present job alone, which leaves what it makes in the folder `run`."""
    hydra = HydraConfig.get()
    command = [sys.executable, "-m", module, "--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            command += ["--config-dir", source.path]
    general = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    folders = {"hydra.run.dir": run.resolve(), "hydra.sweep.dir": Path(hydra.sweep.dir).resolve()}
    return [
        *command,
        *hydra.overrides.task,
        *general,
        *(f"{name}={_quoted(str(folder))}" for name, folder in folders.items()),
        "hydra.output_subdir=null",  # the sweep has written the job's configuration there
    ]


def run_job(module: str, run: Path) -> None:
    """Run the present job as a command of its own.

    A signal is for the job, which saves and ends; then the sweep ends with its exit code.

    Raises:
        RuntimeError: It failed.
    """
    asked: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: object) -> None:
        asked.append(number)
        for job in started:
            job.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        # in a group of its own, so that it gets Ctrl-C once: from here, and not from the terminal as well
        with subprocess.Popen(job_command(module, run), process_group=0) as job:
            started.append(job)
            if asked:
                job.send_signal(asked[0])
            code = job.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        print(f"resume the sweep with: {command_to_resume(run)}", file=sys.stderr)
        raise SystemExit(128 + asked[0])
    if code:
        raise RuntimeError(f"the job in {run} failed with exit code {code}; its message stands above")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
