"""What the tasks of this folder name by `!function`."""

from visualchat.harness.lmms_tasks import MmduTask, Nlvr2Task, SparklesEvalTask, VisChainBenchTask

__all__ = ["MmduTask", "Nlvr2Task", "SparklesEvalTask", "VisChainBenchTask"]
