"""`make same BASE=<commit>`: does this checkout make the batches, losses and metrics of another commit, bit for bit?

For changes that must not change behaviour. Each case is a list of overrides of `conf/train.yaml`, which both commits
must know. Batches are hashed as the data module of each commit gives them; a short training is compared by its logged
losses, its metrics and the weights it leaves. The corpora are the tests' own files in the published formats.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

BLEND = ["data=corpora", "data.num_workers=0", "data.max_length=512", "blend.validation=0.2"]
BATCHES = {
    "tiny": ["data.train.size=64"],
    "tiny packed": ["data.train.size=64", "data.packing=true", "data.max_length=512", "data.batch_size=4"],
    "tiny, two sources": ["data=tiny_mixed"],
    "tiny, chat with shuffled numbers": ["data.train.size=64", "data.train.shuffled=0.5"],
    "set 1": [*BLEND, "data/blend=set1"],
    "set 1, shuffled numbers": [*BLEND, "data/blend=set1_shuffled"],
    "set 2, unpacked": [*BLEND, "data/blend=set2", "data.packing=false"],
    "single images": [*BLEND, "data/blend=single_image"],
}
SMALL = [
    "data.train.size=96",
    "data.validation.size=16",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "callbacks.samples=null",
    "threads=1",
]
SCORED = [
    *(f"evaluation.dialogues.{part}.size=8" for part in ("seen", "unseen")),
    *(f"evaluation.captioned.{part}.size=8" for part in ("seen", "unseen")),
]
RUNS = {
    "mmca": [*SMALL, *SCORED],
    "causal, everything trains": [*SMALL, *SCORED, "attention=causal", "model/trainable=all"],
    "cross": [*SMALL, "attention=cross", "evaluation=none"],
    "mmca with LoRA, packed, accumulated": [
        *SMALL,
        "model/trainable=lora_language",
        "data.packing=true",
        "data.batch_size=2",
        "trainer.accumulate_grad_batches=2",
        "evaluation=none",
    ],
}
MEASURED = ("seconds", "/s", "per_second", "memory/")
"""Marks of figures that tell how long something took or how much memory."""


def probe(tree: Path, most: int = 40) -> dict[str, list[dict[str, str]]]:
    """The hashes of each batch of each case, training before validation; in the process of one commit."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    found = {}
    for name, overrides in BATCHES.items():
        with initialize_config_dir(str(tree / "conf"), version_base="1.3"):
            config = compose("train", overrides)
        processor = instantiate(config.processor)
        data = instantiate(config.data, processor=processor)
        batches = [batch for _, batch in zip(range(most), data.train_dataloader(), strict=False)]
        batches += [batch for _, batch in zip(range(most), data.val_dataloader(), strict=False)]
        found[name] = [_digest(dict(batch)) for batch in batches]
    return found


def _digest(batch: dict[str, Any]) -> dict[str, str]:
    """A hash of each tensor of a batch, its shape and type."""
    found = {}
    for name, value in batch.items():
        if hasattr(value, "numpy"):
            about = f"{tuple(value.shape)} {value.dtype};".encode()
            found[name] = hashlib.sha256(about + value.contiguous().numpy().tobytes()).hexdigest()
    return found


def train(name: str, overrides: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What one training leaves: every logged figure and every metric but times, and a hash of the weights."""
    run = folder / "run"
    command = [sys.executable, "-m", "visualchat.cli.train", f"hydra.run.dir={run}", *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: training ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    with next(run.glob("logs/csv/**/metrics.csv")).open() as file:
        rows = [{key: value for key, value in row.items() if _compared(key)} for row in csv.DictReader(file)]
    metrics = json.loads((run / "metrics.json").read_text())
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    return {"log": rows, "metrics": {k: v for k, v in metrics.items() if _compared(k)}, "weights": weights}


def _compared(key: str) -> bool:
    return not any(mark in key for mark in MEASURED)


def collect(tree: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Everything of one commit, each part in a process of its own."""
    folder.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(tree / "src"),
        "VISUALCHAT_DATA": str(data),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, __file__, "--probe", str(tree), str(folder / "batches.json")]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    found: dict[str, Any] = {f"batches: {k}": v for k, v in json.loads((folder / "batches.json").read_text()).items()}
    for number, (name, overrides) in enumerate(RUNS.items()):
        place = folder / str(number)
        place.mkdir()
        found[f"training: {name}"] = train(name, overrides, place, environment)
    return found


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two results differ, by path, at most a line a leaf."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in [*before, *(key for key in after if key not in before)]
            for line in differences(before.get(key), after.get(key), f"{place}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{place}/{index}")]
    return [] if before == after else [f"{place}: {str(before)[:60]} became {str(after)[:60]}"]


def main() -> int:
    """Exit code 0 if nothing differs, 1 if something does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit to compare with")
    base = parser.parse_args().base
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "data" / "sources")]
    from corpora import Corpus
    from published_files import write_published

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_published(Corpus(folder / "data"))
        tree = folder / "tree"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(tree), base], check=True)
        try:
            before = collect(tree, folder / "data", folder / "before")
            after = collect(ROOT, folder / "data", folder / "after")
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    for case in before:
        lines = differences(before[case], after[case])
        print(f"{'same     ' if not lines else 'DIFFERENT'} {case}")
        for line in lines[:8]:
            print(f"          {line}")
    return int(before != after)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        Path(sys.argv[3]).write_text(json.dumps(probe(Path(sys.argv[2]))))
    else:
        sys.exit(main())
