"""A replica: one engine in a process of its own, somewhere in the cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from visualchat.engine import Engine
from visualchat.engine.image_store import ImageStore
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model
from visualchat.serve.backend import Event, Figures, Warmed
from visualchat.serve.errors import ApiError
from visualchat.serve.local import Local
from visualchat.serve.protocol import ChatRequest
from visualchat.serve.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What a replica is made of.

    Attributes:
        folder: Of the saved model, where every machine of the cluster finds it.
        vision: Where a light folder's vision encoder is, if it has moved.
        language: Where its language model is, if it has moved.
        store: Settings of the store of images.
        engine: Settings of the engine.
        settings: What requests may ask for.
    """

    folder: Path
    vision: str | None
    language: str | None
    store: Mapping[str, Any]
    engine: Mapping[str, Any]
    settings: Settings

    def make(self) -> Engine:
        """The engine, on the GPU that the replica has, if it has one."""
        disable_progress_bar()
        model = load_model(self.folder, self.vision, self.language)
        torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
        processor = VisualChatProcessor.from_pretrained(self.folder)
        return Engine(model, processor, ImageStore(**self.store), **self.engine)


class Replica:
    """What Ray Serve runs in each of the processes; its engine works from the start to the end of the process."""

    def __init__(self, plan: Plan) -> None:
        self.engine = plan.make()
        self.engine.start()
        self.local = Local(self.engine, plan.settings)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._in_hand = 0

    async def answer(self, route: str, asked: ChatRequest, scope: str) -> AsyncIterator[ApiError | Event | None]:
        """Why a request cannot be answered, alone; or None, as it can, and then what comes of it.

        Args:
            route: What it was routed by.
            asked: The request.
            scope: Whose it is.
        """
        with self._one_more():
            try:
                reply = await self.local.submit(asked, scope)
            except ApiError as error:
                yield error
                return
            try:
                yield None
                async for event in reply.events():
                    yield event
            finally:  # also when its client hung up, or the server is gone
                reply.cancel()

    async def warm(self, route: str, url: str, number: int, scope: str) -> ApiError | Warmed:
        """What became of an image (a data URL), as image `number` of conversations of a scope; or why nothing did."""
        with self._one_more():
            try:
                return await self.local.warm(url, number, scope)
            except ApiError as error:
                return error

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        """A request is in hand while the block runs."""
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def figures(self) -> Figures:
        """What is told of it now."""
        return replace(await self.local.figures(), in_hand={self.name: self._in_hand})
