"""A tokenizer's tokens by their bytes: how they are spelled, and which of them keep an answer to a JSON schema.

llguidance (https://github.com/guidance-ai/llguidance) follows the schema, token by token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer
from torch import Tensor

from visualchat.engine import Constraint, Engine, Handle, Score
from visualchat.serve.errors import ApiError

MOST_SCHEMA = 1 << 16
"""Characters of a schema."""

COMPACT: Any = {"whitespace_flexible": False, "lenient": False}
"""Without space that a model could write for ever, and without leaving out what is not understood."""

LIMITS = LLParserLimits(verbose_errors=False)
"""The library's own, with errors that tell nothing of its state."""

CUT = "\N{REPLACEMENT CHARACTER}"
"""How a character reads whose last bytes have not come."""


class Vocabulary:
    """The tokens of an engine's model.

    Args:
        engine: The one.
    """

    def __init__(self, engine: Engine) -> None:
        tokenizer, ends = engine.processor.tokenizer, engine.processor.end_token_ids
        size = engine.model.get_output_embeddings().weight.shape[0]
        self._tokens: Any = None
        with suppress(ValueError):  # of a kind that the library does not know: requests that need it are refused
            self._tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=ends[-1])

    def check(self, param: str) -> None:
        """Refuse a part of a request for which tokens must be known.

        Raises:
            ApiError: They are not.
        """
        if self._tokens is None:
            raise ApiError(400, f"{param} is not supported for this model's tokenizer; leave it out", param=param)

    def json(self, schema: dict[str, Any]) -> Callable[[], Constraint]:
        """Makes what keeps answers to a schema.

        Raises:
            ApiError: The schema cannot be followed.
        """
        self.check("response_format")
        if len(json.dumps(schema)) > MOST_SCHEMA:
            raise _refused(f"it has more than {MOST_SCHEMA} characters")
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
        wrong, why = LLMatcher.validate_grammar_with_warnings(grammar, self._tokens, limits=LIMITS)
        if wrong:
            raise _refused(f"{why[0].splitlines()[0]:.200}")
        first = LLMatcher(self._tokens, grammar, log_level=0, limits=LIMITS)
        return lambda: JsonAnswer(first.deep_copy())

    def logprob(self, score: Score) -> dict[str, Any]:
        """A token's, in OpenAI's form."""
        top = [self._spelled(token, value) for token, value in score.top]
        return {**self._spelled(score.token, score.logprob), "top_logprobs": top}

    def _spelled(self, token: int, logprob: float) -> dict[str, Any]:
        data: bytes = self._tokens.decode_bytes([token])
        return {"token": data.decode(errors="replace"), "bytes": [*data], "logprob": logprob}


class JsonAnswer:
    """A `Constraint`.

    Args:
        matcher: At its beginning.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> Tensor:
        """As `Constraint` has it."""
        found = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        self._check()
        return found

    def take(self, token: int) -> None:
        """As `Constraint` has it."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused("it is too complex")


def _refused(why: str) -> ApiError:
    message = f"response_format: the schema cannot be followed: {why}"
    return ApiError(400, message, param="response_format", code="invalid_schema")


class Logprobs:
    """Those of an answer's tokens as its text comes; tokens that the text does not show have none.

    Args:
        handle: Of the answer.
        tokenizer: Of the model.
        vocabulary: Of the same.
    """

    def __init__(self, handle: Handle, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._handle, self._tokenizer, self._vocabulary = handle, tokenizer, vocabulary
        self._characters = self._tokens = 0

    def behind(self, text: str) -> tuple[dict[str, Any], ...]:
        """Of the tokens that begin in a piece of the text; pieces are given in order."""
        self._characters += len(text)
        scores, begun = self._handle.scores, self._tokens
        while self._tokens < len(scores) and self._shows(scores[: self._tokens]):
            self._tokens += 1
        special = self._tokenizer.all_special_ids
        return tuple(
            self._vocabulary.logprob(score) for score in scores[begun : self._tokens] if score.token not in special
        )

    def _shows(self, before: Sequence[Score]) -> bool:
        """Whether the text has more than these tokens."""
        said: str = self._tokenizer.decode([score.token for score in before], skip_special_tokens=True)
        return len(said) < self._characters or (bool(said) and said.endswith(CUT))
