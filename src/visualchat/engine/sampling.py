"""The next token of each row, by the settings of its own request and the processors that `generate` would apply.

Shapes: V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visualchat.engine.request import Request
from visualchat.model import VisualChatForConditionalGeneration


class NotNumbers(RuntimeError):
    """A model's logits are not numbers."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not numbers (nan): its weights are damaged, or its precision too low")


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        model: Its generation config counts where the request leaves a setting open.
        request: The one.
        end: The end token.

    Attributes:
        plain: Whether it takes the likeliest token of the logits as they are, which a batch can do at once.
    """

    def __init__(self, model: VisualChatForConditionalGeneration, request: Request, end: int) -> None:
        found: dict[str, Any] = {}

        def prepared(model: Any, input_ids: Tensor, logits_processor: Any, generation_config: Any, **_: Any) -> Tensor:
            found.update(processors=logits_processor, samples=generation_config.do_sample)
            return input_ids

        self._ids = torch.tensor([request.tokens.ids], device=model.device)
        settings: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            settings["temperature"] = request.temperature
            if request.top_p is not None:
                settings["top_p"] = request.top_p
        model.generate(
            input_ids=self._ids,
            attention_mask=torch.ones_like(self._ids),
            **settings,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            custom_generate=prepared,
        )
        self._processors, self._samples = found["processors"], found["samples"]
        self.plain = not self._samples and not self._processors
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
        scores = self._processors(self._ids, logits.to(torch.float32))
        if not self._samples:
            token = scores.argmax(-1, keepdim=True)
        else:
            weights = scores.softmax(-1)
            weights = weights if self._generator is None else weights.cpu()
            token = torch.multinomial(weights, 1, generator=self._generator).to(logits.device)
        if self._processors:
            self._ids = torch.cat([self._ids, token], 1)
        return int(token)


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
