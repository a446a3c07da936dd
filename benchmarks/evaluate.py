"""How long `visualchat-evaluate` takes for some 10,000 questions of the tiny world, teacher-forced and free-running.

    python benchmarks/evaluate.py outputs/.../model                     a tiny model that is trained: its answers end
    python benchmarks/evaluate.py outputs/.../model --dialogues 30      a small run

The command runs once in a process of its own, as it is typed. Writes benchmarks/results/evaluate-cpu.json: seconds of
the clock and of all processors, and the machine's load before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import cpu_name

RESULTS = Path(__file__).resolve().parent / "results" / "evaluate-cpu.json"


def measure(model: Path, dialogues: int, threads: int) -> dict[str, Any]:
    """Evaluate so many dialogues, two thirds of them of seen compositions; what it took."""
    sizes = {"seen": dialogues - dialogues // 3, "unseen": dialogues // 3}
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"evaluation.dialogues.{part}.size={size}" for part, size in sizes.items()]
        typed = [f"folder={model.resolve()}", "evaluation=tiny", *settings, "evaluation.controls=[]"]
        command = [str(Path(sys.executable).parent / "visualchat-evaluate"), *typed, f"hydra.run.dir={folder}/run"]
        load, started = os.getloadavg()[0], time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        predictions = (Path(folder) / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    return {
        "command": " ".join(["visualchat-evaluate", *typed[1:]]),
        "cpu": cpu_name(),
        "threads": threads,
        "dialogues": dialogues,
        "questions": len(predictions) // 2,  # each is asked in two modes
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "exact_match": metrics["exact_match/all"],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a saved model's folder")
    parser.add_argument("--dialogues", type=int, default=3120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure(options.model, options.dialogues, options.threads)
    options.results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
