"""VisualChat inside other people's evaluation programs: a model and tasks for lmms-eval.

lmms-eval is not a dependency: it finds the model by the entry point `lmms_eval.models` where both are installed, and
the tasks by `--include_path` with `TASKS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "lmms_eval_tasks"
"""The folder of tasks: MMDU, SparklesEval, VisChainBench and NLVR2, read from the data root."""


def lmms_eval_models() -> Any:
    """What the entry point gives: the manifest of the model `visualchat`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("visualchat", chat_class_path="visualchat.harness.lmms_model.VisualChat")
