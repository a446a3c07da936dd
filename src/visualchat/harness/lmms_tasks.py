"""Benchmarks of several rounds as tasks of lmms-eval, read by VisualChat's own readers and scored by its own metrics.

The model's own answers become the history of later rounds; images come in the round in which they are sent. The files
lie under the data root, the folder in VISUALCHAT_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableMessagesTask

from visualchat.data.sources import Source
from visualchat.data.sources.benchmarks import Mmdu, Nlvr2, SparklesEval, VisChainBench
from visualchat.dialogue import Caption, Content, Dialogue
from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.predictions import Prediction, questions
from visualchat.images.decode import decode_image

_SPLIT = "test"


class BenchmarkTask(ConfigurableMessagesTask):
    """A benchmark's reader as a task.

    Attributes:
        reader: Of the benchmark.
        metric: A name of `METRICS`: the figure is its mean over all rounds.
    """

    reader: ClassVar[type[Any]]
    metric: ClassVar[str]

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        figure = {"metric": self.metric, "aggregation": _mean, "higher_is_better": True}
        settings = {
            "task": (config or {}).get("task", self.reader.__name__),
            "test_split": _SPLIT,
            "output_type": "generate_until_multi_round",
            "doc_to_text": self._words,
            "doc_to_visual": None,
            "doc_to_target": self._target,
            "doc_to_messages": self._messages,
            "process_results": self._scores,
            "metric_list": [figure],
            "generation_kwargs": {},
        }
        super().__init__(config=settings)

    def download(self, dataset_kwargs: Any = None) -> None:
        """Read the files; a document is the number of a dialogue."""
        rows = Dataset.from_list([{"index": index, "id": self._source[index].id} for index in range(len(self._source))])
        self.dataset = self.dataset_no_image = DatasetDict({_SPLIT: rows})

    @cached_property
    def _source(self) -> Source:
        source: Source = self.reader(os.environ.get("VISUALCHAT_DATA", "datasets"))
        return source

    def _dialogue(self, document: Mapping[str, Any]) -> Dialogue:
        return self._source[document["index"]]

    def _words(self, document: Mapping[str, Any], *_: Any, **__: Any) -> str:
        return self._dialogue(document).turns[0].question

    def _target(self, document: Mapping[str, Any]) -> str:
        return " / ".join(turn.answer or "" for turn in self._dialogue(document).turns)

    def _messages(
        self,
        doc: Mapping[str, Any],
        round_idx: int | None = None,
        previous_output: Sequence[str] = (),
        previous_round_info: Any = None,
    ) -> Any:
        """The conversation up to a round; from the second round on with whether it was the last, as lmms-eval asks."""
        turns, index = self._dialogue(doc).turns, round_idx or 0
        if index == len(turns):
            return None, True, previous_output, None
        messages: list[dict[str, Any]] = []
        for turn, said in zip(turns[: index + 1], [*previous_output, None], strict=True):
            messages.append({"role": "user", "content": [_item(item) for item in turn.content]})
            if said is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        return messages if round_idx is None else (messages, False, previous_output, None)

    def _scores(self, doc: Mapping[str, Any], results: Sequence[Any], **_: Any) -> dict[str, list[float]]:
        """The scores of a dialogue's rounds."""
        (said,) = results
        predictions = [
            Prediction("lmms_eval", "free_running", self.reader.__name__, **facts, shown=(), answer=answer,
                       ended="stop", exact=answer == facts["references"][0])
            for facts, answer in zip(questions(self._dialogue(doc)), said, strict=True)
        ]  # fmt: skip
        return {self.metric: [score.value for score in METRICS[self.metric](predictions)]}


def _item(item: Content) -> dict[str, Any]:
    """A piece of a round in lmms-eval's form."""
    if isinstance(item, str):
        return {"type": "text", "text": item}
    assert not isinstance(item, Caption), "benchmarks show images"
    return {"type": "image", "url": decode_image(item)}


def _mean(scores: Sequence[Sequence[float]]) -> float:
    """The mean over all rounds of all dialogues."""
    each = [score for of_one in scores for score in of_one]
    return sum(each) / len(each)


class MmduTask(BenchmarkTask):
    """MMDU; its published scores come from a judge, this is the likeness to the reference answers."""

    reader, metric = Mmdu, "rouge_l"


class SparklesEvalTask(BenchmarkTask):
    """SparklesEval; its published scores come from a judge, this is the likeness to the reference answers."""

    reader, metric = SparklesEval, "rouge_l"


class VisChainBenchTask(BenchmarkTask):
    """VisChainBench: accuracy over all steps."""

    reader, metric = VisChainBench, "accuracy"


class Nlvr2Task(BenchmarkTask):
    """NLVR2: accuracy."""

    reader, metric = Nlvr2, "accuracy"
