"""`visualchat-evaluate`: exact match of a saved model, beside the same model without images."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from visualchat.cli.config import quieten
from visualchat.cli.main import evaluate as main
from visualchat.cli.saved import load_model, saved_model
from visualchat.evaluation.exact_match import prefixed
from visualchat.evaluation.report import metrics_table, samples_page
from visualchat.evaluation.runner import answer_turns, evaluate_parts
from visualchat.model import VisualChatProcessor


def evaluate(config: DictConfig, run: Path) -> dict[str, float]:
    """Score a saved model; `metrics.json` and `samples.html` go into the folder `run`."""
    quieten()
    folder = saved_model(config.folder)
    model = load_model(folder, config.vision, config.language)
    processor = VisualChatProcessor.from_pretrained(folder)
    settings = config.evaluation
    parts = {name: [*part] for name, part in instantiate(settings.dialogues).items()}
    columns = {
        name: evaluate_parts(
            model,
            processor,
            parts,
            apart=settings.apart,
            blind=name == "blind",
            batch_size=settings.batch_size,
            description=name,
        )
        for name in ("model", "blind")
    }
    Console().print(metrics_table(f"{folder}, attention {model.config.attention_kind}", columns))
    metrics = columns["model"] | prefixed("blind", columns["blind"])
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    chosen = [dialogue for part in parts.values() for dialogue in part[: settings.samples]]
    (run / "samples.html").write_text(samples_page("Sample dialogues", chosen, answer_turns(model, processor, chosen)))
    return metrics


def run(config: DictConfig) -> None:
    """The command."""
    evaluate(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
