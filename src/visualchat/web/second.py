"""Two models behind one API, so that both can answer the same dialogue."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import chain
from types import TracebackType

from visualchat.attention import KINDS
from visualchat.attention.kinds import check_name
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.serve.backend import Backend, Figures, Reply, Warmed
from visualchat.serve.errors import unknown_model
from visualchat.serve.protocol import ChatRequest


def attend_by(model: VisualChatForConditionalGeneration, kind: str) -> None:
    """Let a model attend by another kind in all layers, whatever it was trained with.

    Raises:
        ValueError: The kind is unknown, or the model has layers that read images outside the sequence.
    """
    check_name(kind, KINDS)
    if model.config.images_outside:
        raise ValueError("a model with attention 'cross' has layers of its own for images: no other kind fits it")
    model.config.attention_kind, model.config.early_attention_kind = kind, None
    model.language_model.set_attn_implementation(model.config.decoder_attention)


def beside(model: VisualChatForConditionalGeneration, kind: str) -> VisualChatForConditionalGeneration:
    """A model of the same weights, which take no memory again, that attends by another kind.

    Raises:
        ValueError: As `attend_by`.
    """
    shared: dict[int, object] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    other = copy.deepcopy(model, shared)
    attend_by(other, kind)
    return other


class Several:
    """A backend that asks the one whose model a request names.

    Args:
        backends: With models of different names.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = {name: backend for backend in backends for name in backend.names}
        self.names = tuple(self.backends)
        self.places = sum(backend.places for backend in backends)
        self._open = AsyncExitStack()

    async def submit(self, asked: ChatRequest, scope: str) -> Reply:
        """As `Backend` has it."""
        if asked.model not in self.backends:
            raise unknown_model(self.names)
        return await self.backends[asked.model].submit(asked, scope)

    async def warm(self, url: str, number: int, scope: str) -> Warmed:
        """As `Backend` has it: every model gets to know the image; what became of it is the first's."""
        found = [await backend.warm(url, number, scope) for backend in self.backends.values()]
        return found[0]

    async def figures(self) -> Figures:
        """As `Backend` has it: of all together."""
        return Figures.of_all([await backend.figures() for backend in self.backends.values()])

    async def __aenter__(self) -> Several:
        for backend in self.backends.values():
            await self._open.enter_async_context(backend)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._open.aclose()
