"""The store of images as an engine's requests see it: each its own scope's part, and what it costs is counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visualchat.engine.image_store import ImageStore, digest


class CountedStore(ImageStore):
    """Another store as requests of one scope see it, and how many images were computed for it by way of this one.

    Attributes:
        computed: So many since it was set to 0.
        scope: Of the request that is being computed; images of no scope have their own keys, as those of sessions.
    """

    def __init__(self, store: ImageStore) -> None:
        super().__init__(0, 0)
        self.store, self.computed, self.scope = store, 0, ""

    def get(self, key: str, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """As `ImageStore.get`."""

        def counted() -> Tensor:
            self.computed += 1
            return compute()

        return self.store.get(self._scoped(key), device, counted)

    def get_opening(self, key: str, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """As `ImageStore.get_opening`."""
        return self.store.get_opening(self._scoped(key), device, compute)

    def __contains__(self, key: str) -> bool:
        return self._scoped(key) in self.store

    def _scoped(self, key: str) -> str:
        return key + digest(self.scope) if self.scope else key
