"""A request on its way through an engine: its tokens so far, who waits for them, how it ended.

An engine's stepping thread and its clients share jobs: whatever ends one first counts.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visualchat.attention import Modality
from visualchat.dialogue.encoding import NO_UNIT
from visualchat.engine.answering import Tokens
from visualchat.engine.image_store import digest
from visualchat.engine.kept import Name, splits_unit
from visualchat.engine.request import Answer, Finish, Request, Score, Usage
from visualchat.engine.sampling import Sampler, scored
from visualchat.engine.spoken import has_stop, text_of
from visualchat.images.feature_store import image_key
from visualchat.model.growing_cache import GrowingCache


@dataclass(eq=False)
class Job:
    """A request and what has become of it.

    Attributes:
        request: The one.
        names: What each of its tokens is, those of the answer behind them.
        tokenizer: Reads the answer.
        ends: The tokens that end it.
        said: The answer so far.
        scores: Of its tokens, if they are asked for.
        finish: Why it ended; None while it has not.
        error: What it failed of.
        changed: Held while `said` or `finish` change, and notified of it.
        cache: Of the first `done` tokens while it is being prefilled or decodes alone.
        order: Where in the conversation the first entries (1, n) of its cache stand, where they do not at their own
            place.
        done: How many of its tokens are computed.
        cached: How many of those were known.
        sampler: Once it runs.
    """

    request: Request
    names: list[Name]
    tokenizer: Any
    ends: frozenset[int]
    said: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    finish: Finish | None = None
    error: Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    cache: GrowingCache | None = None
    order: Tensor | None = None
    done: int = 0
    cached: int = 0
    sampler: Sampler | None = None
    begun: float = field(default_factory=time.perf_counter)
    first: float | None = None
    ended: float | None = None

    def say(self, token: int, logits: Tensor) -> None:
        """Take a token, chosen by logits (1, V), into the answer, and end it where the token does."""
        top = self.request.logprobs
        score = None if top is None else scored(token, logits, top)
        with self.changed:
            if self.finish is not None:
                return
            self.first = self.first or time.perf_counter()
            if score is not None:
                self.scores.append(score)
            self.said.append(token)
            self.names.append((token, NO_UNIT))
            if token in self.ends or has_stop(self.tokenizer, self.said, self.request.stop):
                self.end("stop")
            elif len(self.said) == self.request.max_new_tokens:
                self.end("length")
            self.changed.notify_all()

    def end(self, finish: Finish, error: Exception | None = None) -> None:
        """End it, unless it has ended."""
        with self.changed:
            if self.finish is None:
                self.finish, self.error, self.ended = finish, error, time.perf_counter()
                self.changed.notify_all()

    def modality(self, device: torch.device) -> Tensor:
        """That of the tokens of the prompt (n,), in the order of the cache's entries."""
        found = torch.tensor(self.request.tokens.modality, device=device)
        return found if self.order is None else torch.cat([found[self.order[0]], found[self.order.shape[1] :]])

    def upto(self, place: int) -> Tokens:
        """The first tokens of the prompt."""
        tokens = self.request.tokens
        return Tokens(tokens.ids[:place], tokens.modality[:place], tokens.units[:place])

    def cut(self, most: int) -> int:
        """Where a next chunk of at most so many tokens ends: between units, one of which it has at least."""
        length = len(self.request.tokens.ids)
        end = min(self.done + most, length)
        while self.done < end < length and splits_unit(self.names, end):
            end -= 1
        if end == self.done:
            end += 1
            while end < length and splits_unit(self.names, end):
                end += 1
        return end

    def answer(self) -> Answer:
        """What came of it; it has ended."""
        assert self.finish is not None
        assert self.ended is not None
        request = self.request
        usage = Usage(len(request.tokens.ids), self.cached, request.image_tokens, len(self.said))
        text = text_of(self.tokenizer, self.said, request.stop)
        first = None if self.first is None else self.first - self.begun
        return Answer(list(self.said), text, self.finish, usage, first, self.ended - self.begun)


def names_of(request: Request, size: int) -> list[Name]:
    """What each token of a request is, where an image has so many.

    Raises:
        OSError: The pixels of an image cannot be read.
    """
    keys = [digest(request.scope, image_key(image)) for image in request.images]
    names: list[Name] = []
    seen = 0
    for token, kind, unit in zip(request.tokens.ids, request.tokens.modality, request.tokens.units, strict=True):
        if kind == Modality.IMAGE:
            names.append((keys[seen // size], unit))
            seen += 1
        else:
            names.append((token, unit))
    if names and request.tokens.modality[0] != Modality.IMAGE:
        names[0] = ((request.scope, names[0][0]), names[0][1])  # what begins differently has nothing in common
    return names
