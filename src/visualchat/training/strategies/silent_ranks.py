"""A rank that falls silent: how long the others wait for it, and how they end."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import lightning
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import distributed_c10d

from visualchat.training.stopping import RankSilent

_SILENCE = re.compile(r"timed out|connection (closed|reset|refused) by peer|wait timeout", re.IGNORECASE)
"""What the libraries below say when a process does not answer: gloo, NCCL, torch's store."""


def patience(seconds: float) -> timedelta:
    """How long processes wait for each other until training starts; the target of `timeout` in conf/trainer/strategy.

    Raises:
        ValueError: No one can wait so long.
    """
    if seconds <= 0:
        raise ValueError(f"a timeout of {seconds} seconds: expected more than 0")
    return timedelta(seconds=seconds)


class RankTimeout(lightning.Callback):
    """How long processes that train wait for each other.

    Until then the strategy's own timeout holds: reading data and models takes one process longer than another.

    Args:
        seconds: That long.

    Raises:
        ValueError: No one can wait so long.
    """

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError(f"rank_timeout={seconds}, expected seconds greater than 0")
        self.timeout = timedelta(seconds=seconds)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on, once all are here: a slower one is still at its start."""
        if trainer.world_size > 1:
            trainer.strategy.barrier()
            for group in distributed_c10d._world.pg_map:
                distributed_c10d._set_pg_timeout(self.timeout, group)


@contextmanager
def ending_silence(trainer: lightning.Trainer) -> Iterator[None]:
    """Turn what the libraries say of a silent rank into a word to the person, and end the processes.

    Args:
        trainer: The run's. The processes that it started are killed, stopped ones too.

    Raises:
        RankSilent: A rank was silent for longer than the strategy's timeout, or has died.
    """
    try:
        yield
    except Exception as error:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            for process in launcher.procs:
                process.kill()  # a stopped process heeds no other signal
        if trainer.world_size > 1 and _SILENCE.search(str(error)):
            message = (
                f"rank {trainer.global_rank} waited in vain for another of the {trainer.world_size} processes: it was "
                "stopped, is dead, or was busy for longer than rank_timeout (until training starts, "
                "trainer.strategy.timeout.seconds)"
            )
            if not trainer.is_global_zero:  # the first rank may be the silent one
                print(message, file=sys.stderr, flush=True)
            raise RankSilent(message) from error
        raise
