"""`visualchat-train`: tune, evaluate beside the baselines, and leave a model to chat with."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from visualchat.cli.combinations import check_combination
from visualchat.cli.config import PLAIN, attention_setting, check_attention, setting, silence_libraries
from visualchat.cli.ending import explained, sole_use
from visualchat.cli.main import train as main
from visualchat.cli.provenance import closing_wandb, keep_configuration, record_results, record_run
from visualchat.cli.scoring import Scored, check_evaluation, dialogues_to_score, score
from visualchat.cli.sweep_jobs import needs_own_processes, run_job
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.evaluation.report import draw_curves
from visualchat.model import VisualChatProcessor
from visualchat.model.light import save_light
from visualchat.model.trainable import merge_adapters
from visualchat.model.warm_start import start_from, whole_base
from visualchat.training.callbacks.best import load_best
from visualchat.training.checkpoint_io import CheckpointFolders, manifest
from visualchat.training.gather import gather_model
from visualchat.training.module import VisualChatModule
from visualchat.training.ranks import is_first_rank
from visualchat.training.resume import FOLDER, LAST, find_checkpoint, require_same_model, settings_of
from visualchat.training.strategies.silent_ranks import ending_silence

console = Console()


def train(config: DictConfig, run: Path) -> dict[str, float]:
    """One run from data to a saved model; everything it leaves lies in the folder `run`.

    Returns:
        The metrics, as in `metrics.json`.
    """
    silence_libraries()
    check_attention(config.attention)
    refuse_drawn_shapes(config)
    check_combination(config)
    check_evaluation(config.evaluation)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    if config.save not in ("full", "light", "both"):
        raise ValueError(f"unknown save={config.save}, expected full, light or both")
    if config.save != "light" and config.model.quantization.bits:
        raise ValueError(f"a quantized base is not copied: choose save=light, found save={config.save}")
    if config.threads:
        torch.set_num_threads(config.threads)
    settings = settings_of(OmegaConf.to_container(config, resolve=True))
    checkpoint = _where_to_begin(config.resume, run, settings)
    processor: VisualChatProcessor = instantiate(config.processor)
    build_model = instantiate(config.build_model, vocab_size=len(processor.tokenizer))
    base = build_model.keywords["vision"], build_model.keywords["language"]
    trainable, fill = instantiate(config.model.trainable), None
    if config.init is not None:
        build_model, fill = start_from(config.init, build_model, trainable, attention_setting)
    data: VisualChatDataModule = instantiate(config.data, processor=processor)
    module = VisualChatModule(
        build_model,
        instantiate(config.optimizer),
        trainable,
        base=_base_name(config),
        gradient_checkpointing=config.gradient_checkpointing,
        fill=fill,
        settings=settings,
    )
    trainer: lightning.Trainer = instantiate(
        config.trainer,
        logger=list(instantiate(config.logger).values()),
        callbacks=[callback for callback in instantiate(config.callbacks).values() if callback],
        plugins=[CheckpointFolders()],
    )
    if trainer.is_global_zero:
        keep_configuration(run)
        record_run(config, run, trainer.loggers)
    started = time.perf_counter()
    with ending_silence(trainer):
        trainer.fit(module, data, ckpt_path=checkpoint)
        seconds = time.perf_counter() - started
        gather_model(module, trainer)
    if not trainer.is_global_zero:
        return {}
    if config.resume == "auto" and (finished := _finished(run, trainer.global_step, config.load_best_model_at_end)):
        console.print(f"{os.path.relpath(run)}/ is already finished: left unchanged", highlight=False)
        return finished
    last = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("validation/")}
    validated = load_best(module, trainer) if config.load_best_model_at_end else last
    _save(config.save, module, base, processor, run)
    metrics = {"train/seconds": seconds, "train/steps": float(trainer.global_step)} | validated
    if trainer.world_size > 1 and config.evaluation.dialogues:
        console.print(f"the first of {trainer.world_size} processes evaluates, the others are done", **PLAIN)
    metrics |= _evaluate(config, module, data, run)
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    record_results(metrics, trainer.loggers, trainer.global_step)
    rows = run / "logs" / "csv" / "metrics.csv"
    if rows.is_file() and "metrics" in config.callbacks:  # there are no logs under fast_dev_run
        draw_curves(
            rows,
            run / "curves.png",
            f"{attention_setting(config.attention)}, {seconds:.0f} s",
        )
    _say_what_is_where(run, seconds, "light" if config.save == "light" else "model")
    return metrics


def refuse_drawn_shapes(config: DictConfig) -> None:
    """Refuse to train a real language model on the tiny world for no other reason than that no data were named.

    Raises:
        ValueError: It would.
    """
    hydra = HydraConfig.get()
    named = any(override.partition("=")[0] == "data" for override in hydra.overrides.task)
    if isinstance(config.model.language.path, str) and hydra.runtime.choices["data"].startswith("tiny") and not named:
        raise ValueError(
            f"{config.model.language.path} would train on the drawn shapes of data={hydra.runtime.choices['data']}, "
            "because no data are named: say data=own data/source=... (docs/own-data.md), or data=tiny if you mean it"
        )


def _where_to_begin(resume: str | None, run: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint to resume from, None to start from scratch; the first rank says so, and what has changed since.

    Raises:
        ValueError: There is no such checkpoint, it is another model's, or the folder `run` is another run's.
    """
    checkpoint = find_checkpoint(resume, run)
    if resume != "auto" and is_first_rank():
        _refuse_another_run(run, checkpoint)
    saved = None if checkpoint is None else manifest(checkpoint)
    changed = require_same_model(saved["settings"], settings) if saved else []
    if is_first_rank():
        console.print(f"the run's folder: {os.path.relpath(run)}/", highlight=False, soft_wrap=True)
        if checkpoint is not None and saved:
            place = f"{os.path.relpath(checkpoint)} at step {saved['step']}"
            console.print(f"resuming from {place}", highlight=False, soft_wrap=True)
        if changed:
            console.print(f"changed since: {'; '.join(changed)}", highlight=False, markup=False, soft_wrap=True)
    return checkpoint


def _refuse_another_run(run: Path, checkpoint: Path | None) -> None:
    """Refuse to write over what an earlier run has left in the folder, unless it is the one that resumes.

    Raises:
        ValueError: There is something.
    """
    if checkpoint is not None and checkpoint.resolve().is_relative_to(run.resolve()):
        return
    for name, what in ((f"{FOLDER}/{LAST}", "the checkpoints"), ("model", "the model"), ("light", "the light folder")):
        if (run / name).exists():
            raise ValueError(
                f"{os.path.relpath(run)}/ holds {what} of an earlier run: resume it with resume=auto, or choose "
                "another folder with hydra.run.dir="
            )


def _finished(run: Path, steps: int, best: bool) -> dict[str, float]:
    """The metrics of a run that ended after so many optimizer steps and left that model; empty if it did not."""
    path = run / "metrics.json"
    metrics: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    return metrics if metrics.get("train/steps") == steps and ("train/best_step" in metrics) == best else {}


def _save(
    what: str,
    module: VisualChatModule,
    base: tuple[str | Path, str | Path],
    processor: VisualChatProcessor,
    run: Path,
) -> None:
    """Leave the whole model in `model/`, what trained of it in `light/`, or both, each with its processor.

    The whole model has its adapters merged.
    """
    if what in ("light", "both"):
        whole = whole_base(module.build_model)
        save_light(module.model, run / "light", *base, module.trainable, module.fingerprint(), whole)
        processor.save_pretrained(run / "light")
    if what in ("full", "both"):  # last: the newest is what other commands take
        merge_adapters(module.model).save_pretrained(run / "model")
        processor.save_pretrained(run / "model")


def _base_name(config: DictConfig) -> str:
    """The frozen backbones as error messages call them."""
    choices = HydraConfig.get().runtime.choices
    return f"vision {choices['model/vision']} and language {choices['model/language']}"


def _evaluate(config: DictConfig, module: VisualChatModule, data: VisualChatDataModule, run: Path) -> dict[str, float]:
    """The tuned model beside the one the run began with, the blind one and, with captions, the one that reads them.

    Nothing where the evaluation has no dialogues.
    """
    settings = config.evaluation
    processor: VisualChatProcessor = data.processor  # type: ignore[assignment]
    parts = dialogues_to_score(settings, config.data, processor, data.validation)
    if not parts:
        return {}
    model = module.model.eval()
    untrained = module.assemble().eval().to(model.device)
    columns: dict[str, Scored] = {"tuned": (model, parts), "untrained": (untrained, parts), "blind": (model, parts)}
    if settings.captioned:
        columns["captions"] = untrained, instantiate(settings.captioned)
    data_choice = HydraConfig.get().runtime.choices["data"]
    title = f"held-out dialogues, {attention_setting(config.attention)}, data={data_choice}"
    return score(columns, settings, processor, run, title)


def _say_what_is_where(run: Path, seconds: float, model: str) -> None:
    folder = os.path.relpath(run)
    console.print(f"tuned in {seconds:.0f} s; everything is in {folder}/", **PLAIN)
    for name, what in (
        ("metrics.json", "the figures"),
        ("curves.png", "the curves"),
        ("samples.html", "sample dialogues with their images"),
        (f"{model}/", "the model; chat with it: make chat, or"),
    ):
        if (run / name).exists():
            console.print(f"  {name:13} {what}", **PLAIN)
    console.print(f"                visualchat-chat {setting('folder', f'{folder}/{model}')}", **PLAIN)


def run(config: DictConfig) -> Any:
    """The command; its value, exact match over all, is what a sweep compares."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        keep_configuration(folder)  # the sweep's table has runs that fail, too
    if needs_own_processes(config):
        run_job("visualchat.cli.train", folder)
        metrics = json.loads((folder / "metrics.json").read_text())
    else:
        with explained(folder), sole_use(folder), closing_wandb():
            metrics = train(config, folder)
    return metrics.get("exact_match/all")


if __name__ == "__main__":
    main()
