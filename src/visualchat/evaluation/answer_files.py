"""Answers of several models to the same conversations, from files: those of `visualchat-generate`, or of any program.

Any program writes JSON Lines with an object an answer: `id` of the conversation, `round` from 1, `answer`; what else it
holds is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from visualchat.dialogue import Dialogue
from visualchat.evaluation.predictions import Prediction, questions
from visualchat.generation.records import Record

Question = tuple[str, int]
"""The conversation's id and the round, from 1."""


@dataclass(frozen=True)
class Conversations:
    """What was asked.

    Attributes:
        name: Of the file.
        dialogues: With the true answers where there are some, else with empty ones.
    """

    name: str
    dialogues: Sequence[Dialogue]

    def find(self, id: str) -> str | None:
        """The whole id of a conversation that is named by it, or by what its row calls it; None if there is none."""
        return self._ids.get(id)

    @cached_property
    def _ids(self) -> dict[str, str | None]:
        """Whole ids by what conversations are called; None where several are."""
        found: dict[str, str | None] = {}
        for dialogue in self.dialogues:
            short = dialogue.id.partition(":")[2]
            found[short] = None if short in found else dialogue.id
        return found | {dialogue.id: dialogue.id for dialogue in self.dialogues}

    @cached_property
    def rounds(self) -> dict[str, int]:
        """How many rounds each has, by its whole id."""
        return {dialogue.id: len(dialogue.turns) for dialogue in self.dialogues}


def read_answers(path: Path, asked: Conversations) -> dict[Question, str]:
    """The answers of a file.

    Raises:
        ValueError: A line is none of the two forms, names no question, or answers one again.
    """
    if not path.is_file():
        raise ValueError(f"answers={path}: there is no such file")
    rounds = asked.rounds
    found: dict[Question, str] = {}
    lines: dict[Question, int] = {}
    with path.open(encoding="utf-8-sig", errors="strict") as file:
        try:
            for number, line in enumerate(file, start=1):
                for id, round_, answer in _answers_of(line, f"{path}, line {number}"):
                    place = f"{path}, line {number}"
                    whole = asked.find(id)
                    if whole is None:
                        some = ", ".join(repr(d.id.partition(":")[2] or d.id) for d in asked.dialogues[:3])
                        raise ValueError(f"{place}: {asked.name} has no conversation {id!r:.60}; it has {some}, ...")
                    if not 1 <= round_ <= rounds[whole]:
                        raise ValueError(
                            f"{place}: round {round_} of {id!r:.60}, which has rounds 1 to {rounds[whole]}"
                        )
                    if (question := (whole, round_)) in found:
                        first = lines[question]
                        raise ValueError(f"{place}: round {round_} of {id!r:.60} was answered in line {first} already")
                    found[question], lines[question] = answer, number
        except UnicodeDecodeError as error:
            raise ValueError(f"answers={path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not found:
        raise ValueError(f"answers={path} holds no answer")
    return found


def _answers_of(line: str, place: str) -> list[tuple[str, int, str]]:
    """The conversation, round and words of each answer of a line; none of an empty one.

    Raises:
        ValueError: It is none of the two forms.
    """
    if not line.strip():
        return []
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error}); expected an object with id, round and answer") from error
    if isinstance(row, dict) and {"messages", "asked"} <= row.keys():
        try:
            record = Record(**row)
            said = record.rounds()
            return [(record.id, number, said[number - 1][1]) for number in record.asked]
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{place}: not a line that visualchat-generate has written ({error})") from error
    if not isinstance(row, dict) or not {"id", "round", "answer"} <= row.keys():
        kind = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{place}: expected an object with id, round and answer; found {kind or 'an empty one':.80}")
    for name, kinds in (("id", (str, int)), ("round", (int,)), ("answer", (str,))):
        if not isinstance(row[name], kinds) or isinstance(row[name], bool):
            wanted = {"id": "text or a number", "round": "a number from 1", "answer": "text"}[name]
            raise ValueError(f"{place}: {name} must be {wanted}, found {row[name]!r:.60}")
    return [(str(row["id"]), row["round"], row["answer"])]


def common_questions(
    files: Mapping[str, Mapping[Question, str]], asked: Conversations, *, skip: bool
) -> tuple[list[Question], dict[str, list[Question]]]:
    """The questions that all files answer, in the order of the conversations, and those that a file alone lacks.

    Args:
        files: The answers of each model.
        asked: The conversations.
        skip: Whether to leave out what a file lacks.

    Raises:
        ValueError: Without `skip` a file lacks an answer that another has; or no question is answered by all.
    """
    order = [(id, n) for id, count in asked.rounds.items() for n in range(1, count + 1)]
    any_has = [question for question in order if any(question in of for of in files.values())]
    missing = {name: [question for question in any_has if question not in of] for name, of in files.items()}
    for name, of in missing.items():
        if of and not skip:
            (id, number), count = of[0], len(of)
            raise ValueError(
                f"answers: {name} lacks {count} of {len(any_has)} answers that others have, the first: round {number} "
                f"of {id!r}; on_error=skip leaves such questions out"
            )
    common = [question for question in any_has if all(question in of for of in files.values())]
    if not common:
        raise ValueError("answers: no question is answered by all files")
    return common, {name: of for name, of in missing.items() if of}


def as_predictions(
    model: str,
    answers: Mapping[Question, str],
    asked: Sequence[Question],
    conversations: Conversations,
    shown: Mapping[str, Sequence[Sequence[str]]],
) -> list[Prediction]:
    """The answers of one model as metrics take them; `references` is empty where no true answer is known.

    Args:
        model: Its name.
        answers: By question.
        asked: The questions, in order.
        conversations: They are of.
        shown: Names of the files of each conversation's images by round.
    """
    facts: dict[Question, dict[str, Any]] = {
        (dialogue.id, fact["round"]): fact for dialogue in conversations.dialogues for fact in questions(dialogue)
    }
    found = []
    for question in asked:
        id, number = question
        fact, answer = facts[question], answers[question]
        true = tuple(text for text in fact["references"] if text.strip())
        files = tuple(shown[id][number - 1]) if id in shown else ()
        exact = bool(true) and answer.strip() == true[0].strip()
        known = {**fact, "references": true}
        found.append(
            Prediction(
                model,
                "free_running",
                conversations.name,
                **known,
                shown=files,
                answer=answer,
                ended="stop",
                exact=exact,
            )
        )
    return found
