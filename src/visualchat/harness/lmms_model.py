"""A saved model as a chat model of lmms-eval: `--model visualchat --model_args pretrained=outputs/.../model`.

Each round of a task is a prompt of its messages; a batch of prompts is answered at a time, greedily, as everywhere else
in VisualChat. What lmms-eval asks for beyond that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from visualchat.dialogue import Dialogue
from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.generation.answering import batched
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model, saved_model

_GREEDY = {"temperature": 0, "do_sample": False, "num_beams": 1, "top_p": None}
"""What a task may set, and to which value; `until` besides, because answers end by themselves."""


class VisualChat(lmms):
    """A saved folder, whole or light.

    Args:
        pretrained: The folder.
        batch_size: Prompts answered at a time.
        device: Where the model runs.
        max_new_tokens: The most tokens of an answer where a task does not say.
        **kwargs: Nothing else is known.

    Raises:
        ValueError: Another setting is given, or the folder holds no model.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str = "cpu",
        max_new_tokens: int | str = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if unknown := [name for name, value in kwargs.items() if value is not None and name != "max_batch_size"]:
            raise ValueError(
                f"model_args: unknown {', '.join(unknown)}; expected pretrained, batch_size, device, max_new_tokens"
            )
        folder = saved_model(pretrained)
        network: Any = load_model(folder)
        self.network = network.to(device).eval()
        self.processor = VisualChatProcessor.from_pretrained(folder)
        self.batch_size, self.max_new_tokens = int(batch_size), int(max_new_tokens)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request."""
        prompts = [_prompt(_messages_of(request)(self._document(request)), request) for request in requests]
        return self._answers(prompts, requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers to the rounds of each request; later rounds are given the model's own answers."""
        said: list[list[str]] = [[] for _ in requests]
        infos: list[Any] = [None] * len(requests)
        waiting = [*range(len(requests))]
        while waiting:
            prompts: dict[int, Dialogue] = {}
            for index in waiting:
                messages, infos[index] = self._round(requests[index], said[index], infos[index])
                if messages is not None:
                    prompts[index] = _prompt(messages, requests[index])
            waiting = [*prompts]
            answers = self._answers([*prompts.values()], [requests[index] for index in waiting])
            for index, answer in zip(waiting, answers, strict=True):
                said[index].append(answer)
        return said

    def _round(self, request: Any, said: Sequence[str], info: Any) -> tuple[Any, Any]:
        """The messages of a request's next round, None behind the last; and what its task keeps between rounds."""
        messages_of, document = _messages_of(request), self._document(request)
        if not said:
            return messages_of(document), info
        messages, ended, _, info = messages_of(
            document, round_idx=len(said), previous_output=[*said], previous_round_info=info
        )
        return None if ended else messages, info

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not measured: tasks of lmms-eval that need it are refused."""
        raise NotImplementedError("visualchat answers by generation: choose a task whose output_type is generate_until")

    def _document(self, request: Any) -> Any:
        _, _, _, number, task, split = request.arguments
        return self.task_dict[task][split][number]

    def _answers(self, prompts: Sequence[Dialogue], requests: Sequence[Any]) -> list[str]:
        texts: dict[int, str] = {}
        lengths = [_length(request.arguments[2], self.max_new_tokens) for request in requests]
        for length in sorted(set(lengths)):
            chosen = [index for index, of in enumerate(lengths) if of == length]
            answer = batched(self.network, self.processor, max_new_tokens=length, batch_size=self.batch_size)
            for index, given in zip(chosen, answer([prompts[i] for i in chosen]), strict=True):
                if isinstance(given, ValueError):
                    raise ValueError(f"{prompts[index].id}: {given}") from given
                texts[index] = given.text
        return [texts[index] for index in range(len(prompts))]


def _messages_of(request: Any) -> Callable[..., Any]:
    """What gives the messages of a document of the request's task."""
    messages_of: Callable[..., Any] = request.arguments[1]
    return messages_of


def _length(settings: Mapping[str, Any] | None, default: int) -> int:
    """The most tokens of an answer.

    Raises:
        ValueError: The task asks for something other than greedy answers.
    """
    given = dict(settings or {})
    given.pop("until", None)
    length = int(given.pop("max_new_tokens", default))
    for name, value in given.items():
        if name not in _GREEDY or value not in (_GREEDY[name], None):
            raise ValueError(f"generation_kwargs: {name}={value} is not offered; answers are greedy")
    return length


def _prompt(messages: Sequence[Mapping[str, Any]], request: Any) -> Dialogue:
    """Messages as lmms-eval writes them, {"type": "image", "url": <image or path>}, as a dialogue."""
    name = f"{request.arguments[4]}, document {request.arguments[3]}"
    plain = [{**message, "content": [_item(item, name) for item in message["content"]]} for message in messages]
    return dialogue_from_messages(plain, name)


def _item(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if item["type"] == "text":
        return item
    if item["type"] != "image":
        raise ValueError(f"{name}: only texts and images can be read, found {item['type']}")
    url = item["url"]
    return {"type": "image", "image": url if isinstance(url, Image.Image | bytes) else str(url)}
