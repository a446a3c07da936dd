"""What is kept of a study: every answer of every run, what each run was, and the questions once.

One file of compressed JSON lines: the questions first, then a line a run. Tables, intervals and figures are computed
from it alone, so that a page can be made again, and looked into, without training anything.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visualchat.evaluation.predictions import Prediction
from visualchat.files import whole_file
from visualchat.studies.plan import Levels


@dataclass(frozen=True)
class Question:
    """A question that every run answers.

    Attributes:
        part: Of the evaluation.
        dialogue: The dialogue's id.
        round: From 1.
        kind: The question's.
        images: Of its dialogue.
        words: Those of the question.
        truth: The true answer.
    """

    part: str
    dialogue: str
    round: int
    kind: str
    images: int
    words: str
    truth: str


@dataclass(frozen=True)
class Run:
    """One training and its answers.

    Attributes:
        arm: Its level of each factor.
        seed: Of the training.
        train: What was typed behind `visualchat-train`, but for seed and folder.
        evaluate: What was typed behind `visualchat-evaluate`, but for folders.
        code: Version, commit and cleanliness of the code (`visualchat.cli.provenance`).
        seconds: Of the training, without start and evaluation.
        right: For each question 1 if the answer is the true one to its last token, else 0.
        answers: The words of each.
        study: Which it was run for, where that is another one.
    """

    arm: Levels
    seed: int
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    code: dict[str, Any]
    seconds: float
    right: str
    answers: tuple[str, ...]
    study: str = ""

    def does(self, arm: Levels, seed: int, train: Sequence[str], evaluate: Sequence[str]) -> bool:
        """Whether this is the run of these settings."""
        return (self.arm, self.seed, self.train, self.evaluate) == (arm, seed, tuple(train), tuple(evaluate))


@dataclass
class Kept:
    """The questions and the runs so far."""

    questions: list[Question] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def add(self, run: Run, questions: Sequence[Question]) -> None:
        """Take a run in, in place of an earlier one of its arm and seed.

        Raises:
            ValueError: It answered other questions than the runs before it.
        """
        others = [other for other in self.runs if (other.arm, other.seed) != (run.arm, run.seed)]
        if others and list(questions) != self.questions:
            raise ValueError(
                f"{', '.join(run.arm)}, seed {run.seed}: its {len(questions)} questions are not the "
                f"{len(self.questions)} of the runs that are kept: the data have changed, so all runs are needed again "
                "(again=true)"
            )
        self.questions, self.runs = list(questions), [*others, run]


def answered(predictions: Iterable[Prediction]) -> tuple[list[Question], str, tuple[str, ...]]:
    """An evaluation's questions, whether each answer is right, and the answers."""
    questions, right, answers = [], [], []
    for p in predictions:
        questions.append(Question(p.part, p.dialogue, p.round, p.kind, p.images, p.question, p.references[0]))
        right.append("1" if p.exact else "0")
        answers.append(p.answer)
    return questions, "".join(right), tuple(answers)


def write(kept: Kept, path: Path) -> None:
    """Write the file whole, or not at all."""
    lines = [{"questions": [list(asdict(question).values()) for question in kept.questions]}]
    lines += [asdict(run) for run in sorted(kept.runs, key=lambda run: (run.arm, run.seed))]
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    with whole_file(path) as draft:
        draft.write_bytes(lzma.compress(text.encode("utf-8", "surrogatepass"), preset=9))


def read(path: Path) -> Kept:
    """The file of `write`; nothing kept where there is none.

    Raises:
        ValueError: It is damaged.
    """
    if not path.is_file():
        return Kept()
    try:
        first, *lines = lzma.decompress(path.read_bytes()).decode("utf-8", "surrogatepass").splitlines()
        questions = [Question(*values) for values in json.loads(first)["questions"]]
        runs = [_run(json.loads(line)) for line in lines]
    except (lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): take it from git again, or remove it and run again") from error
    for run in runs:
        if not len(run.right) == len(run.answers) == len(questions):
            raise ValueError(f"{path} is damaged: {', '.join(run.arm)}, seed {run.seed}, lacks answers; remove it")
    return Kept(questions, runs)


def _run(values: dict[str, Any]) -> Run:
    lists = {name: tuple(values[name]) for name in ("arm", "train", "evaluate", "answers")}
    return Run(**{**values, **lists})
