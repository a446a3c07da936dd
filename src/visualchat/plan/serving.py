"""What a server keeps in memory beside a model: keys and values of conversations, and of images that it knows."""

from __future__ import annotations

from dataclasses import dataclass

from visualchat.plan.machine import Machine
from visualchat.plan.memory import weight_bytes
from visualchat.plan.shapes import Sizes


@dataclass(frozen=True)
class Serving:
    """Bytes of each.

    Attributes:
        weights: Of the whole model, on one GPU.
        token: Of one token in a conversation: its keys and values in all layers.
        image: Of an image in the store.
    """

    weights: int
    token: int
    image: int

    def session(self, tokens: int) -> int:
        """Of a conversation of so many tokens that is answered or kept, without the room it grows into."""
        return tokens * self.token

    def sessions(self, tokens: int, machine: Machine) -> int:
        """How many of those one GPU holds beside the weights."""
        return max(0, int((machine.usable - machine.reserve - self.weights) // self.session(tokens)))


def serving(sizes: Sizes, bits: int | None = None) -> Serving:
    """What a model takes when it serves, its frozen language layers quantised to so many bits if asked."""
    token = 2 * sizes.layers * sizes.key_heads * sizes.head_size * sizes.element
    return Serving(weight_bytes(sizes, bits), token, sizes.image_tokens * token)
