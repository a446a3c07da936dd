"""Images that were computed once: their keys and values in every layer, for any place in any conversation.

Two tiers with a budget of bytes each: what was not used for longest leaves the model's device for the host's memory,
and that for good. Any number of sessions, in any threads, may share a store. A new image takes the same way as a known
one, so an answer never depends on what a store holds.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from visualchat.images.feature_store import image_key
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.image_states import Unit

log = logging.getLogger(__name__)

GIB = 1 << 30

OPENING = "opening "
"""Begins the keys of texts, which are no hashes then."""


def digest(*fields: str | bytes) -> str:
    """A hash (hex) of some fields; each is framed by its length, so that no two lists of fields read alike."""
    found = hashlib.sha256()
    for field in fields:
        data = field.encode() if isinstance(field, str) else field
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()


@dataclass(frozen=True)
class StoreStats:
    """What a store did and holds.

    Attributes:
        hits: Images that were asked for and known.
        misses: Those that were computed.
        evicted: Entries that were dropped for want of room.
        entries: Images that it holds.
        openings: Texts before first images that it holds.
        device_bytes: On the model's device.
        host_bytes: In the host's memory.
    """

    hits: int
    misses: int
    evicted: int
    entries: int
    openings: int
    device_bytes: int
    host_bytes: int


class ImageStore:
    """States of images by key, the least recently used leave first.

    Args:
        device_bytes: The most bytes kept on the model's device.
        host_bytes: The most bytes kept in the host's memory beyond those.
    """

    def __init__(self, device_bytes: int = GIB, host_bytes: int = 4 * GIB) -> None:
        self.budgets = (device_bytes, host_bytes)
        self._tiers: tuple[OrderedDict[str, Tensor], ...] = (OrderedDict(), OrderedDict())
        self._bytes = [0, 0]
        self._hits = self._misses = self._evicted = 0
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def get(self, key: str, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """The states of that key on a device; computed, and kept where there is room, if they are not known."""
        return self._get(key, device, compute, image=True)

    def get_opening(self, key: str, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """As `get`, of the text that opens a conversation up to its first image; hits and misses do not count it."""
        return self._get(OPENING + key, device, compute, image=False)

    def _get(self, key: str, device: torch.device, compute: Callable[[], Tensor], *, image: bool) -> Tensor:
        with self._lock:
            states = self._take(key)
            if image:
                self._hits, self._misses = self._hits + (states is not None), self._misses + (states is None)
        states = compute() if states is None else states.to(device)
        with self._lock:
            self._take(key)  # another session may have put it in meanwhile
            self._put(0, key, states)
        return states

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return any(key in tier for tier in self._tiers)

    def clear(self) -> None:
        """Forget all images; the counts stay."""
        with self._lock:
            for tier in self._tiers:
                tier.clear()
            self._bytes = [0, 0]

    @property
    def stats(self) -> StoreStats:
        """Now."""
        with self._lock:
            openings = sum(key.startswith(OPENING) for tier in self._tiers for key in tier)
            entries = sum(map(len, self._tiers)) - openings
            return StoreStats(self._hits, self._misses, self._evicted, entries, openings, *self._bytes)

    def say_once(self, text: str) -> None:
        """Log a warning the first time."""
        with self._lock:
            new = text not in self._said
            self._said.add(text)
        if new:
            log.warning(text)

    def _take(self, key: str) -> Tensor | None:
        """Remove an entry from where it is."""
        for number, tier in enumerate(self._tiers):
            if key in tier:
                states = tier.pop(key)
                self._bytes[number] -= states.nbytes
                return states
        return None

    def _put(self, number: int, key: str, states: Tensor) -> None:
        """Make an entry the latest of a tier; what has no room goes one down, and from the last away."""
        if number == len(self._tiers):
            self._evicted += 1
            return
        if states.nbytes > self.budgets[number]:
            self._put(number + 1, key, states)
            return
        tier = self._tiers[number]
        tier[key] = states if number == 0 else states.cpu()
        self._bytes[number] += states.nbytes
        while self._bytes[number] > self.budgets[number]:
            oldest, moved = tier.popitem(last=False)
            self._bytes[number] -= moved.nbytes
            self._put(number + 1, oldest, moved)


class ImageKeys:
    """The keys of a model's images: all that their states depend on.

    Args:
        model: The one.
        preprocessing: How pixels become the encoder's input, in words.
    """

    def __init__(self, model: VisualChatForConditionalGeneration, preprocessing: str) -> None:
        self.model, self.preprocessing = model, preprocessing

    def of(self, images: Iterable[tuple[Image.Image, Unit]], opening: list[int]) -> tuple[list[str], str]:
        """A key for each image in its unit, and one for the text (token ids) that opens a conversation.

        The image's number counts where the kind of attention makes label and image a unit, or the model numbers images.
        """
        maker, config = self._maker(), self.model.config
        keys = []
        for image, unit in images:
            label = [id for id, kind in zip(unit.ids, unit.modality, strict=True) if not kind]
            numbered = bool(label) or config.image_numbers != "none"
            number = str(unit.number) if numbered else ""
            keys.append(digest(*maker, image_key(image), number, repr(label)))
        return keys, digest(*maker, repr(opening))

    def _maker(self) -> tuple[str, ...]:
        """What computes states, and how."""
        config = self.model.config
        implementation = self.model.language_model.config._attn_implementation
        attention = (implementation, config.attention_kind, config.image_positions)
        model = self.model
        return model_state(model), str(model.dtype), model.device.type, *attention, self.preprocessing


_numbers = itertools.count()
_states: WeakKeyDictionary[nn.Module, tuple[object, int]] = WeakKeyDictionary()
_states_lock = threading.Lock()


def model_state(model: nn.Module) -> str:
    """A name of a model's weights as they are now, in this process; another one once they, or its adapters, change.

    Changes are known by the tensors' versions and places in memory and by 16 of their values, so that a change of a few
    values through `.data`, which leaves no trace, may be missed.
    """
    seen: list[object] = []
    samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    waiting, known_modules = [model], {model}
    while waiting:  # much faster than `named_modules`, and this runs before every answer with images
        module = waiting.pop()
        children = [child for child in module.children() if child not in known_modules]
        waiting.extend(children)
        known_modules.update(children)
        for tensor in itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False)):
            version = -1 if tensor.is_inference() else tensor._version
            seen.append((tensor.data_ptr(), version, tensor.dtype, tensor.shape))
            samples.setdefault((tensor.dtype, tensor.device), []).append(_sample(tensor))
        if isinstance(getattr(type(module), "active_adapters", None), property):  # a layer of PEFT's
            seen += [repr(getattr(module, flag)) for flag in ("active_adapters", "disable_adapters", "merged_adapters")]
    for same in samples.values():
        seen.append(torch.cat(same).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    state = tuple(seen)
    with _states_lock:
        known = _states.get(model)
        if known is None or known[0] != state:
            known = _states[model] = (state, next(_numbers))
        return str(known[1])


def _sample(tensor: Tensor) -> Tensor:
    """Up to 16 values of a tensor, evenly spaced."""
    size = (tensor := tensor.detach()).numel()
    if tensor.is_contiguous():  # in one call
        return tensor.as_strided((min(16, size),), (max(1, size // 16),))
    return tensor.flatten()[:: max(1, size // 16)][:16]
