"""The next token of each row, by the settings of its own request and the processors that `generate` would apply.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from visualchat.engine.request import Request, Score
from visualchat.model import VisualChatForConditionalGeneration

SCORES_ALONE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
"""Processors that do not look at earlier tokens."""

UNLIKELY = -9999.0
"""In place of the logarithm of 0, as OpenAI's API has it."""

MOST = 64
"""So many combinations of settings are remembered."""


class NotNumbers(RuntimeError):
    """A model's logits are not numbers."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not numbers (nan): its weights are damaged, or its precision too low")


@dataclass(frozen=True)
class Prepared:
    """How `generate` would choose tokens.

    Attributes:
        processors: What it does to logits.
        samples: Whether it draws, or takes the likeliest.
    """

    processors: LogitsProcessorList
    samples: bool

    @property
    def by_scores_alone(self) -> bool:
        """Whether nothing in it is of one request, so that others may use it."""
        return all(type(processor) in SCORES_ALONE for processor in self.processors)


class Samplers:
    """Makes samplers for the requests to one model.

    Args:
        model: Where a request leaves a setting open, its generation config counts.
        end: The end token.
    """

    def __init__(self, model: VisualChatForConditionalGeneration, end: int) -> None:
        self._model, self._end = model, end
        self._known: dict[tuple[float, float | None, str], Prepared] = {}

    def __call__(self, request: Request) -> Sampler:
        """The sampler of one answer."""
        settings = request.temperature, request.top_p, repr(vars(self._model.generation_config))
        prepared = self._known.get(settings) or self._prepare(request)
        if prepared.by_scores_alone:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[settings] = prepared
        return Sampler(prepared, request, self._model.device)

    def _prepare(self, request: Request) -> Prepared:
        """By `generate` itself, which costs milliseconds."""
        found: list[Prepared] = []

        def prepared(model: Any, input_ids: Tensor, logits_processor: Any, generation_config: Any, **_: Any) -> Tensor:
            found.append(Prepared(logits_processor, generation_config.do_sample))
            return input_ids

        settings: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            settings["temperature"] = request.temperature
            if request.top_p is not None:
                settings["top_p"] = request.top_p
        ids = torch.tensor([request.tokens.ids], device=self._model.device)
        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **settings,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=self._end,
            pad_token_id=self._end,
            custom_generate=prepared,
        )
        return found[0]


class Sampler:
    """Chooses the tokens of one answer.

    Attributes:
        plain: Whether it takes the likeliest token of the logits as they are, which a batch can do at once.
    """

    def __init__(self, prepared: Prepared, request: Request, device: torch.device) -> None:
        self._prepared = prepared
        self._ids: Any = torch.tensor([request.tokens.ids], device=device)
        self._constraint = None if request.constraint is None else request.constraint()
        self.plain = not prepared.samples and not prepared.processors and self._constraint is None
        self._generator = request.generator
        if request.seed is not None:
            self._generator = torch.Generator().manual_seed(request.seed)

    def choose(self, logits: Tensor) -> int:
        """The token after these logits (1, V), which is of the answer from now on.

        Raises:
            NotNumbers: The logits are not.
        """
        if logits.isnan().any():
            raise NotNumbers
        logits = logits.to(torch.float32)
        if self._constraint is not None:
            logits = logits.masked_fill(~self._constraint.allowed().to(logits.device), -torch.inf)
        scores = self._prepared.processors(self._ids, logits)
        if not self._prepared.samples:
            token = scores.argmax(-1, keepdim=True)
        else:
            weights = scores.softmax(-1)
            weights = weights if self._generator is None else weights.cpu()
            token = torch.multinomial(weights, 1, generator=self._generator).to(logits.device)
        if not self._prepared.by_scores_alone:
            self._ids = torch.cat([self._ids, token], 1)
        if self._constraint is not None:
            self._constraint.take(int(token))
        return int(token)


def scored(token: int, logits: Tensor, top: int) -> Score:
    """How likely a token was by logits (1, V), and so many likeliest ones."""
    known = logits[0].to(torch.float32).log_softmax(-1).clamp(min=UNLIKELY)
    best = known.topk(min(top, len(known)))
    return Score(token, float(known[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def choose(samplers: list[Sampler], logits: Tensor) -> list[int | Exception]:
    """The next token of each row of logits (B, V); for a row that has none, why."""
    best, tokens = logits.max(-1)
    likeliest: list[int] = tokens.tolist()
    broken: list[bool] = best.isnan().tolist()
    found: list[int | Exception] = []
    for row, sampler in enumerate(samplers):
        try:
            if broken[row]:
                raise NotNumbers
            found.append(likeliest[row] if sampler.plain else sampler.choose(logits[row : row + 1]))
        except Exception as error:  # of this row alone
            found.append(error)
    return found
