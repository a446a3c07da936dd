"""The protocol of every evaluation: dialogues with true answers -> the model's answers -> predictions.

Teacher-forced, a question is given the true answers before it; free-running, the model's own. One forward pass over the
true dialogues tells which answers greedy decoding gives exactly; only the others are generated. Up to its first wrong
answer a dialogue is the same either way, so free-running answers are generated behind that alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visualchat.dialogue import Dialogue
from visualchat.evaluation.exact_match import AnswerSums, answer_sums
from visualchat.evaluation.predictions import Mode, Prediction, questions
from visualchat.generation.answer import Answer
from visualchat.generation.answering import Answering, answer_rounds, open_at
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Asker:
    """A model that is asked the questions of dialogues.

    Attributes:
        model: In evaluation mode.
        processor: Of the same model.
        answer: Answers prompts, greedily.
        modes: What stands before the questions.
        batch_size: Dialogues of a forward pass.
        option_likelihood: Whether to measure how likely each option of a choice is.
    """

    model: VisualChatForConditionalGeneration
    processor: VisualChatProcessor
    answer: Answering
    modes: Sequence[Mode]
    batch_size: int
    option_likelihood: bool = False

    def predictions(
        self,
        dialogues: Sequence[Dialogue],
        seen: Sequence[Dialogue],
        column: str,
        part: str,
        shown: Sequence[Sequence[Sequence[str]]] = (),
    ) -> list[Prediction]:
        """The predictions of some dialogues, mode by mode.

        Args:
            dialogues: With true answers.
            seen: The same as the model sees them, perhaps without images.
            column: What the model and its conditions are called.
            part: Of the evaluation.
            shown: Names of the files of each dialogue's images by round.

        Raises:
            ValueError: A loss is not a number, or a prompt leaves no room for an answer; the dialogue is named.
        """
        sums = self._sums(seen)
        forced = self._forced(seen, sums)
        given: dict[Mode, list[list[Answer]]] = {"teacher_forced": forced}
        if "free_running" in self.modes:
            given["free_running"] = self._free(seen, forced, sums)
        facts = [_facts(dialogue, of) for dialogue, of in zip(dialogues, shown or [()] * len(dialogues), strict=True)]
        likely = self._options(seen) if self.option_likelihood else {}
        found = []
        for mode in self.modes:
            for index, answers in enumerate(given[mode]):
                for k, answer in enumerate(answers):
                    one, fields = sums[index][k], facts[index][k]
                    if mode == "teacher_forced":
                        measured: dict[str, Any] = {"tokens": one.tokens, "right": one.right, "loss": one.loss}
                        fields = {**fields, **measured, "option_losses": likely.get((index, k), ())}
                    alike = mode == "teacher_forced" or k <= _first_wrong(sums[index])
                    exact = one.exact if alike else answer.ids == self._true(seen[index], k)
                    said: dict[str, Any] = {"answer": answer.text, "ended": answer.ended, "exact": exact}
                    found.append(Prediction(column=column, mode=mode, part=part, **fields, **said))
        return found

    def _sums(self, dialogues: Sequence[Dialogue]) -> list[list[AnswerSums]]:
        """Of each answer of each dialogue."""
        flat: list[AnswerSums] = []
        for start in range(0, len(dialogues), self.batch_size):
            flat += answer_sums(self.model, self.processor, dialogues[start : start + self.batch_size])
        waiting = iter(flat)
        found = [[next(waiting) for _ in dialogue.turns] for dialogue in dialogues]
        for dialogue, of in zip(dialogues, found, strict=True):
            if bad := [k for k, sums in enumerate(of, start=1) if not math.isfinite(sums.loss)]:
                raise ValueError(
                    f"{dialogue.id}, round {bad[0]}: the loss is {of[bad[0] - 1].loss}: the model's weights "
                    "are damaged, or their type is too small"
                )
        return found

    def _forced(self, dialogues: Sequence[Dialogue], sums: Sequence[Sequence[AnswerSums]]) -> list[list[Answer]]:
        """The answer to every question, given the true ones before; without that mode up to the first wrong one."""
        first = "teacher_forced" not in self.modes
        wrong = [[k for k, one in enumerate(of) if not one.exact][: 1 if first else None] for of in sums]
        asked = [(index, k) for index, of in enumerate(wrong) for k in of]
        prompts = [open_at(dialogues[index], k) for index, k in asked]
        said: dict[tuple[int, int], Answer] = {}
        for place, prompt, answer in zip(asked, prompts, self.answer(prompts), strict=True):
            if isinstance(answer, ValueError):
                raise ValueError(f"{prompt.id}, round {len(prompt.turns)}: {answer}") from answer
            said[place] = answer
        return [
            [said.get((index, k)) or Answer(str(turn.answer), "stop", ()) for k, turn in enumerate(dialogue.turns)]
            for index, dialogue in enumerate(dialogues)
        ]

    def _free(
        self,
        dialogues: Sequence[Dialogue],
        forced: Sequence[Sequence[Answer]],
        sums: Sequence[Sequence[AnswerSums]],
    ) -> list[list[Answer]]:
        """The answer to every question, each given the model's own before."""
        known = [min(_first_wrong(of) + 1, len(of)) for of in sums]  # so many are as if teacher-forced
        begun = [
            replace(d, turns=tuple(replace(t, answer=a.text) for t, a in zip(d.turns, of, strict=True)))
            for d, of in zip(dialogues, forced, strict=True)
        ]
        waiting = [range(n, len(dialogue.turns)) for n, dialogue in zip(known, dialogues, strict=True)]
        found = []
        for dialogue, of, n, own in zip(
            dialogues, forced, known, answer_rounds(begun, waiting, self.answer), strict=True
        ):
            if isinstance(own, ValueError):
                raise ValueError(f"{dialogue.id}, free-running, {own}") from own
            found.append([*of[:n], *(own[k] for k in range(n, len(of)))])
        return found

    def _true(self, dialogue: Dialogue, k: int) -> tuple[int, ...]:
        """The tokens of a true answer, its end included."""
        encoding = self.processor.encode(replace(dialogue, turns=dialogue.turns[: k + 1]), done=k)
        start, stop = encoding.answer_spans[0]
        return tuple(encoding.input_ids[start:stop])

    def _options(self, dialogues: Sequence[Dialogue]) -> dict[tuple[int, int], tuple[float, ...]]:
        """The nats of each option of each choice as the answer: its letter, or its words where those are true."""
        asked: list[tuple[tuple[int, int], Dialogue]] = []
        for index, dialogue in enumerate(dialogues):
            for k, turn in enumerate(dialogue.turns):
                options = turn.expected.options if turn.expected else ()
                said = options if turn.answer in options else LETTERS[: len(options)]
                asked += [((index, k), _answered(dialogue, k, option)) for option in said]
        found: dict[tuple[int, int], tuple[float, ...]] = {}
        for start in range(0, len(asked), self.batch_size):
            some = asked[start : start + self.batch_size]
            sums = iter(answer_sums(self.model, self.processor, [dialogue for _, dialogue in some]))
            for place, dialogue in some:
                *_, last = (next(sums) for _ in dialogue.turns)
                found[place] = (*found.get(place, ()), last.loss)
        return found


def _answered(dialogue: Dialogue, k: int, answer: str) -> Dialogue:
    return replace(dialogue, turns=(*dialogue.turns[:k], replace(dialogue.turns[k], answer=answer)))


def _facts(dialogue: Dialogue, shown: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What the data say of each question, and the names of its images' files."""
    names = [*map(tuple, shown)] or [()] * len(dialogue.turns)
    return [facts | {"shown": of} for facts, of in zip(questions(dialogue), names, strict=True)]


def _first_wrong(sums: Sequence[AnswerSums]) -> int:
    """The index of the first answer that is not exact; how many there are if all are."""
    return next((k for k, one in enumerate(sums) if not one.exact), len(sums))


def steps(parts: Mapping[str, Sequence[object]], columns: Sequence[str], size: int) -> Iterator[tuple[str, str, range]]:
    """Column, part and dialogues of each step of an evaluation, in the order in which they are asked."""
    for column in columns:
        for part, dialogues in parts.items():
            for start in range(0, len(dialogues), size):
                yield column, part, range(start, min(start + size, len(dialogues)))
