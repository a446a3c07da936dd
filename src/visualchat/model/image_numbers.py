"""Which image a token belongs to: checked where a model needs it; and vectors that tell image tokens their number.

An image token that attends to itself alone never meets the words "Image 2". A vector for the number k, added to all
tokens of image k before the language model, tells it which image it is of; its states depend on image and number.

Shapes: B batch, S sequence, K keys (S plus what is cached), N image slots of the whole batch, P tokens an image, E
embedding size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad
from transformers import PreTrainedTokenizerBase

from visualchat.attention import Modality
from visualchat.dialogue.encoding import NO_UNIT, encode_text
from visualchat.dialogue.template import label_text

if TYPE_CHECKING:
    from visualchat.model.configuration_visualchat import VisualChatConfig

STARTS = ("none", "learned", "label")
"""No vectors; vectors that start at zero; vectors that start at the mean embedding of the label's words."""


class ImageNumbers(nn.Module):
    """A vector for each number, zero at first.

    Args:
        limit: The largest number.
        size: E.
    """

    def __init__(self, limit: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(limit, size))

    def forward(self, features: Tensor, numbers: Tensor) -> Tensor:
        """Add to each image (N, P, E) the vector of its number (N), counted from 1.

        Raises:
            ValueError: A number is beyond the limit.
        """
        if len(numbers) and int(numbers.max()) > (limit := self.weight.shape[0]):
            raise ValueError(
                f"the dialogue shows image {int(numbers.max())}, the model has numbers for {limit} images "
                "(image_number_limit); train one with attention.image_number_limit as large as needed"
            )
        return features + embedding(numbers - 1, self.weight)[:, None].to(features.dtype)


@torch.no_grad()
def start_at_labels(numbers: ImageNumbers, words: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let each vector be the mean embedding of the words of its label; `words` are the token embeddings (V, E)."""
    for number, vector in enumerate(numbers.weight, start=1):
        vector.copy_(words[encode_text(tokenizer, label_text(number))].float().mean(0))


def known_units(config: VisualChatConfig, unit_ids: Tensor | None, key_modality: Tensor) -> Tensor | None:
    """The unit ids (B, K) where the model tells images apart, all `NO_UNIT` over text alone; None where it does not.

    Raises:
        ValueError: There are images, and no ids.
    """
    in_attention = any(kind.uses_units or kind.uses_images for kind in config.layer_kinds)
    if not in_attention and config.image_numbers == "none":
        return None
    if unit_ids is not None:
        return unit_ids
    if (key_modality == Modality.IMAGE).any():
        raise ValueError(
            f"this model tells images apart (attention kind {config.attention_kind!r}"
            f"{'' if config.early is None else f' after {config.early.kind!r}'}, image_numbers "
            f"{config.image_numbers!r}): it needs unit_ids (B, K), the number of the image at its tokens and its "
            "label's, -1 elsewhere, as the processor makes them"
        )
    return torch.full_like(key_modality, NO_UNIT)


def attention_ids(config: VisualChatConfig, units: Tensor | None, key_modality: Tensor) -> dict[str, Any]:
    """What tells the language model's attention which image a token is of, (B, K), where its kind asks."""
    found: dict[str, Any] = {}
    if units is not None and any(kind.uses_units for kind in config.layer_kinds):
        found["unit_ids"] = units
    if units is not None and any(kind.uses_images for kind in config.layer_kinds):
        found["image_ids"] = units.masked_fill(key_modality == Modality.TEXT, NO_UNIT)
    return found


def slot_numbers(units: Tensor, mm_token_type_ids: Tensor, images: int) -> Tensor | None:
    """The number (N) of each of so many images in the slots of the present tokens; None where slots do not fit them."""
    of_tokens = units[:, units.shape[1] - mm_token_type_ids.shape[1] :][mm_token_type_ids == Modality.IMAGE]
    return of_tokens.view(images, -1)[:, 0] if len(of_tokens) and len(of_tokens) % images == 0 else None


def longer_by_text(unit_ids: Tensor, length: int) -> Tensor:
    """Unit ids (B, length): what was generated belongs to no image; a chunk of a prompt takes its own part."""
    return pad(unit_ids, (0, length - unit_ids.shape[1]), value=NO_UNIT)
