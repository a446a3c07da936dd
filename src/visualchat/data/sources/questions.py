"""Conversations that wait for answers: the rows that `Messages` reads, with questions that have none yet.

A question is open where no answer follows it, or one that is null or empty: the last one, several, or all; answers that
are there stay. In the dialogues an open question has the answer "".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from visualchat.data.sources.base import encodable
from visualchat.data.sources.messages import Messages, check_words, messages_of
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.dialogue import Dialogue


@dataclass(frozen=True)
class Questions(Messages):
    """Rows in the messages format whose questions are to be answered.

    Attributes:
        every_round: Whether questions that have an answer are asked, too; the given answer is then a reference.
    """

    name: str = "questions"
    every_round: bool = False

    def _spoken(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if row.get("prompt") is not None and row.get("completion") is None:
            row = {**row, "completion": []}
        return _with_open_answers(messages_of(row))

    def _checked(self, dialogue: Dialogue) -> Dialogue:
        if not self.every_round and all(turn.answer for turn in dialogue.turns):
            raise RejectedRowError(
                Reason.NO_OPEN_QUESTION, f"all of {len(dialogue.turns)} questions have an answer; rounds=all asks again"
            )
        return encodable(dialogue)


def _with_open_answers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with an empty answer behind each question that has none.

    Raises:
        RejectedRowError: A role is unknown or out of turn, or there is no question.
    """
    completed: list[dict[str, Any]] = []
    for number, message in enumerate(messages, start=1):
        role, content = message["role"], message["content"]
        asked = bool(completed) and completed[-1]["role"] == "user"
        if role == "system" and number == 1:
            check_words(message)
        elif role == "user":
            check_words(message)
            if asked:
                completed.append({"role": "assistant", "content": ""})
        elif role == "assistant" and asked:
            if content is None or (isinstance(content, str) and not content.strip()):
                message = {"role": role, "content": ""}
        else:
            expected = "'user' or 'assistant'" if asked else "'user'"
            raise RejectedRowError(Reason.ROLE, f"message {number}: expected role {expected}, found {role!r:.40}")
        completed.append(message)
    if not completed or completed[-1]["role"] == "system":
        raise RejectedRowError(Reason.EMPTY_QUESTION, "no message of a user")
    if completed[-1]["role"] == "user":
        completed.append({"role": "assistant", "content": ""})
    return completed


def open_rounds(dialogue: Dialogue, *, every_round: bool = False) -> Dialogue:
    """The dialogue with the answer "" in each round that is to be answered; all of them with `every_round`."""
    turns = tuple(replace(turn, answer="") if every_round or not turn.answer else turn for turn in dialogue.turns)
    return replace(dialogue, turns=turns)
