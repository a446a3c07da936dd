"""Adapters of a language model that act on image tokens alone (Partial LoRA, arXiv 2401.16420): text passes unchanged.

They stay beside the layers that they correct, since what they add depends on the token; so they are kept in a light
folder and cannot be merged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ImageSlots:
    """Where the image tokens of the pass under way are.

    Attributes:
        now: (B, S), True at an image token.
    """

    now: Tensor


class OfImages(nn.Linear):
    """The second half of an adapter, (..., R) to (..., E): exactly 0 at a token that is not an image's."""

    slots: ImageSlots

    def forward(self, input: Tensor) -> Tensor:
        """See the class; (B, S, R) to (B, S, E)."""
        return super().forward(input) * self.slots.now.to(input)[..., None]


def act_on_images_alone(language_model: nn.Module) -> ImageSlots:
    """Let the adapters that a language model has act on image tokens alone.

    Returns:
        Where each pass must say which tokens those are.
    """
    slots = ImageSlots()
    for layer in language_model.modules():
        for half in getattr(layer, "lora_B", {}).values():
            half.__class__, half.slots = OfImages, slots
    return slots


def acts_on_images_alone(layer: Any) -> bool:
    """Whether a layer's adapters do."""
    return any(isinstance(half, OfImages) for half in layer.lora_B.values())
