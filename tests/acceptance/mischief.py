"""A callback that a test adds to a training command, to harm the run in the middle of a step.

It does so only where the environment says `MISCHIEF=cause:step`, so the command that goes on can be typed as printed.
"""

import os
import resource
import signal
import time

import lightning


class Mischief(lightning.Callback):
    """Causes: kill, sigterm, ctrl_c (of the whole group), full disk (of one rank), nan (one rank's loss).

    `validation`: SIGTERM, in the validation after that many steps.
    `slow`: the second rank takes long to start, the first to build models when training is over.
    `silent 0` and `silent 1`: that rank is stopped, as by SIGSTOP from outside.
    """

    def setup(self, trainer, pl_module, stage):
        if os.environ.get("MISCHIEF", "").startswith("slow:"):
            seconds = float(os.environ["MISCHIEF"].removeprefix("slow:"))
            if trainer.global_rank:
                time.sleep(seconds)

    def teardown(self, trainer, pl_module, stage):
        if os.environ.get("MISCHIEF", "").startswith("slow:") and trainer.is_global_zero:
            assemble = pl_module.assemble
            seconds = float(os.environ["MISCHIEF"].removeprefix("slow:"))
            pl_module.assemble = lambda: (time.sleep(seconds), assemble())[1]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.cause(trainer) == "nan" and trainer.global_rank == trainer.world_size - 1:
            weight = pl_module._weight
            pl_module._weight = lambda labels: weight(labels) * float("nan")

    def on_after_backward(self, trainer, pl_module):
        cause = self.cause(trainer)
        writes = trainer.world_size - 1 if "Zero" in type(trainer.strategy).__name__ else 0
        if cause == "full disk" and trainer.global_rank == writes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        elif cause == f"silent {trainer.global_rank}":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif trainer.is_global_zero:
            if cause == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif cause == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            elif cause == "ctrl_c":
                os.killpg(0, signal.SIGINT)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.cause(trainer) == "validation" and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)

    def cause(self, trainer):
        cause, _, step = os.environ.get("MISCHIEF", "none:-1").partition(":")
        return cause if trainer.global_step == int(step) else None
