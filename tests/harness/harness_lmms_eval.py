"""lmms-eval's own command on a saved model and twins of benchmarks: its figures are ours (make test-lmms-eval)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.predictions import Prediction, questions
from visualchat.generation.answering import answer_rounds, batched
from visualchat.harness import TASKS
from visualchat.harness.lmms_model import VisualChat
from visualchat.harness.lmms_tasks import MmduTask, Nlvr2Task, SparklesEvalTask, VisChainBenchTask

TASK_OF = {
    "vischainbench": VisChainBenchTask,
    "sparkles_eval": SparklesEvalTask,
    "mmdu": MmduTask,
    "nlvr2": Nlvr2Task,
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data root with the twins."""
    for folder in ("", "benchmarks"):
        monkeypatch.syspath_prepend(Path(__file__).parents[1] / "data" / "sources" / folder)
    from benchmark_twins import TWINS
    from corpora import Corpus

    for name in TASK_OF:
        TWINS[name].write(Corpus(tmp_path))
    return tmp_path


@pytest.fixture
def saved(tmp_path, model, processor) -> Path:
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lmms_eval(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "VISUALCHAT_DATA": str(root), "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(root / "hub")}
    command = [sys.executable, "-m", "lmms_eval", "--include_path", str(TASKS), "--batch_size", "3", *arguments]
    return subprocess.run(command, env=told, cwd=root, capture_output=True, text=True, check=False)


def test_its_figures_are_ours(root, saved, model, processor):
    tasks = ",".join(f"visualchat_{name}" for name in TASK_OF)
    arguments = ("--model", "visualchat", "--model_args", f"pretrained={saved},max_new_tokens=6")
    done = lmms_eval(root, *arguments, "--tasks", tasks, "--output_path", "out", "--log_samples")
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (root / "out").rglob("*_results.json")
    theirs = json.loads(file.read_text())["results"]
    answer = batched(model, processor, max_new_tokens=6, batch_size=3)
    for name, task in TASK_OF.items():
        dialogues = [*task.reader(root)]
        said = answer_rounds(dialogues, [range(len(dialogue.turns)) for dialogue in dialogues], answer)
        told = [
            Prediction("tuned", "free_running", name, **facts, shown=(), answer=of[k].text, ended="stop", exact=False)
            for dialogue, of in zip(dialogues, said, strict=True)
            for k, facts in enumerate(questions(dialogue))
        ]
        scores = METRICS[task.metric](told)
        (samples,) = (root / "out").rglob(f"*_samples_visualchat_{name}.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        answers = [row.get("resps", row["filtered_resps"]) for row in rows]  # the former where they differ
        assert answers == [[answer.text for answer in of.values()] for of in said]
        assert theirs[f"visualchat_{name}"][f"{task.metric},none"] == pytest.approx(
            sum(score.value for score in scores) / len(scores)
        )


@pytest.mark.parametrize("task", TASK_OF.values())
def test_true_answers_have_the_full_score(root, monkeypatch, task):
    monkeypatch.setenv("VISUALCHAT_DATA", str(root))
    scored = task()
    for document in scored.test_docs():
        answers = [turn.answer for turn in scored.reader(root)[document["index"]].turns]
        assert scored.process_results(document, [answers]) == {task.metric: pytest.approx([1.0] * len(answers))}
        assert scored.process_results(document, [["?"] * len(answers)]) == {task.metric: [0.0] * len(answers)}


def test_a_mistake_is_told_by_its_command(root, saved):
    """lmms-eval prints the error and ends with 0."""
    arguments = ("--model", "visualchat", "--model_args", f"pretrained={saved},beams=4")
    done = lmms_eval(root, *arguments, "--tasks", "visualchat_nlvr2")
    told = "model_args: unknown beams; expected pretrained, batch_size, device, max_new_tokens"
    assert told in " ".join((done.stderr + done.stdout).split())


def test_what_is_not_offered_is_refused(saved):
    with pytest.raises(ValueError, match="no saved model there"):
        VisualChat(f"{saved}/gone")
    model = VisualChat(str(saved))
    with pytest.raises(NotImplementedError, match="choose a task whose output_type is generate_until"):
        model.loglikelihood([])
    asked = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    sampled = Mock(arguments=("", lambda document: asked, {"temperature": 0.7}, 0, "task", "test"))
    model.task_dict = {"task": {"test": [{}]}}
    with pytest.raises(ValueError, match=r"temperature=0\.7 is not offered; answers are greedy"):
        model.generate_until([sampled])
