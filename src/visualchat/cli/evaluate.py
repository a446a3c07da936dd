"""`visualchat-evaluate`: how well a saved model answers held-out dialogues, beside the same model without images."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from visualchat.cli.config import setting, silence_libraries
from visualchat.cli.main import evaluate as main
from visualchat.cli.scoring import dialogues_to_score, score
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model, saved_model

console = Console()


def evaluate(config: DictConfig, run: Path) -> dict[str, float]:
    """Score a saved model; `metrics.json` and `samples.html` go into the folder `run`."""
    silence_libraries()
    folder = saved_model(config.folder)
    choices = HydraConfig.get().runtime.choices
    require_the_runs_data(folder, HydraConfig.get().overrides.task)
    model = load_model(folder, config.vision, config.language)
    processor = VisualChatProcessor.from_pretrained(folder)
    parts = dialogues_to_score(config.evaluation, config.data, processor)
    if not parts:
        raise ValueError("evaluation=none has nothing to score: leave it out, or name another one")
    title = f"{folder}, attention {model.config.attention_kind}, data={choices['data']}"
    metrics = score({"tuned": (model, parts), "blind": (model, parts)}, config.evaluation, processor, run, title)
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    for name, what in (("metrics.json", "the figures"), ("samples.html", "sample dialogues with their images")):
        if (run / name).exists():
            console.print(f"  {os.path.relpath(run / name)}  {what}", highlight=False, soft_wrap=True)
    return metrics


def require_the_runs_data(folder: Path, overrides: Sequence[str]) -> None:
    """Refuse to score the model of a run on the tiny world for no other reason than that no data were named.

    Args:
        folder: Of the model; its run's folder is above it.
        overrides: What was typed.

    Raises:
        ValueError: The run trained on other data; the message says how it named them.
    """
    records = folder.resolve().parent / ".hydra"
    typed = {override.partition("=")[0] for override in overrides}
    if typed & {"data", "evaluation"} or not (records / "hydra.yaml").is_file():
        return
    record = OmegaConf.load(records / "hydra.yaml").hydra
    trained_on = {group: record.runtime.choices.get(group) for group in ("data", "data/source", "data/blend")}
    if not trained_on["data"] or trained_on["data"].startswith("tiny"):
        return
    again = [f"{group}={choice}" for group, choice in trained_on.items() if choice]
    again += [o for o in record.overrides.task if o.startswith(("source.", "data.", "blend.", "seed="))]
    raise ValueError(
        f"{folder} was trained on data={trained_on['data']}: name the data to score it on, such as what it held out:\n"
        f"visualchat-evaluate {setting('folder', folder)} {shlex.join(again)}"
    )


def run(config: DictConfig) -> None:
    """The command."""
    evaluate(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
