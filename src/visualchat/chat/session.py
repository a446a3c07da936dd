"""A conversation with a model: any number of rounds, each with any number of images, answers streamed.

The key-value cache is kept between rounds, so a round encodes and prefills only what is new: its own images and text.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from visualchat.attention import Modality
from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.encoding import NO_UNIT
from visualchat.images import ImageInput
from visualchat.images.decode import decode_image
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.images_first import new_cache


class ChatSession:
    """One conversation; not for use from several threads at once.

    Args:
        model: Answers.
        processor: Of the same model.
        max_new_tokens: The most tokens of an answer.
        temperature: 0 for greedy answers, else the temperature of sampling.
    """

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self._open: Generator[str, None, None] | None = None
        self.turns: tuple[Turn, ...] = ()
        self._forget()

    def reset(self) -> None:
        """Start again; an answer that is still streaming is cut short."""
        self._close()
        self._forget()

    def _close(self) -> None:
        """Cut an answer short that was not read to its end."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _forget(self) -> None:
        self.turns = ()
        self.cached = 0  # rounds that the cache holds: none after `undo`
        self.ends: list[int] = []  # tokens of the conversation after each round
        self.ids: list[int] = []
        self.modality: list[int] = []
        self.units: list[int] = []
        self.cache = new_cache(self.model.config)

    def undo(self) -> None:
        """Take the last round back; an answer that is still streaming is cut short first.

        The next round is computed from the beginning.

        Raises:
            ValueError: There is no round.
        """
        self._close()
        if not self.turns:
            raise ValueError("there is no round to take back")
        turns, end = self.turns[:-1], self.ends[-2] if len(self.ends) > 1 else 0
        ids, modality, units, ends = self.ids[:end], self.modality[:end], self.units[:end], self.ends[:-1]
        self._forget()
        self.turns, self.ids, self.modality, self.units, self.ends = turns, ids, modality, units, ends

    @property
    def images(self) -> int:
        """Images sent so far; the next is image `images + 1`."""
        return sum(len(turn.images) for turn in self.turns)

    def ask(self, question: str, images: Sequence[ImageInput] = ()) -> Generator[str, None, None]:
        """Send a round and stream the answer in pieces; the round counts once the stream is read to its end or closed.

        An earlier answer that is still streaming is cut short first.

        Raises:
            ValueError: An image cannot be read, the question is empty, or the conversation would outgrow the model.
                Nothing is sent then.
        """
        self._close()
        turn = Turn.ask(question, [decode_image(image, f"image {n}") for n, image in enumerate(images, start=1)])
        ids, modality, units, pixel_values = self._encode(turn)
        limit = self.model.config.text_config.max_position_embeddings
        if len(ids) + self.max_new_tokens > limit:
            raise ValueError(
                f"the conversation has {len(ids)} tokens and {self.max_new_tokens} are kept for the answer: more than "
                f"the {limit} that the model can hold; start a new one"
            )
        self._open = self._stream(turn, ids, modality, units, pixel_values)
        return self._open

    def _encode(self, turn: Turn) -> tuple[list[int], list[int], list[int], torch.Tensor | None]:
        """Token ids, modality and units of the whole conversation with this turn open, and the new images."""
        encoding = self.processor.encode(Dialogue((*self.turns, turn)), done=len(self.turns))
        images = [image for new in (*self.turns[self.cached :], turn) for image in new.images]
        pixel_values = None
        if images:
            pixel_values = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        modality, units = self.modality + encoding.mm_token_type_ids, self.units + encoding.unit_ids
        return self.ids + encoding.input_ids, modality, units, pixel_values

    def _stream(
        self, turn: Turn, ids: list[int], modality: list[int], units: list[int], pixel_values: torch.Tensor | None
    ) -> Generator[str, None, None]:
        """Generate in a thread of its own and hand the text on as it comes."""
        tokenizer = self.processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = threading.Event()
        result: dict[str, Any] = {}

        def generate() -> None:
            try:
                result["ids"] = self._generate(ids, modality, units, pixel_values, streamer, stop)
            except Exception as error:  # handed to the caller's thread
                result["error"] = error
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from streamer
        finally:
            stop.set()
            worker.join()
            if "ids" in result:
                self._close_turn(turn, result["ids"], modality, units)
            else:
                self._forget()  # the cache may hold half a round
        if "error" in result:
            raise result["error"]

    def _generate(
        self,
        ids: list[int],
        modality: list[int],
        units: list[int],
        pixel_values: torch.Tensor | None,
        streamer: TextIteratorStreamer,
        stop: threading.Event,
    ) -> list[int]:
        """All token ids of the conversation, the new answer included."""
        device = self.model.device
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([ids], device=device),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
            "mm_token_type_ids": torch.tensor([modality], device=device),
            "unit_ids": torch.tensor([units], device=device),
        }
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values.to(device)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        out = self.model.generate(
            **inputs,
            **sampling,
            past_key_values=self.cache,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.processor.end_token_ids[-1],
            pad_token_id=self.processor.tokenizer.pad_token_id,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
        )
        return out[0].tolist()

    def _close_turn(self, turn: Turn, ids: list[int], modality: list[int], units: list[int]) -> None:
        """Take the answered round into the conversation; an answer that was cut short gets its end token."""
        tokenizer, end = self.processor.tokenizer, self.processor.end_token_ids
        answer = tokenizer.decode(ids[len(modality) :], skip_special_tokens=True)
        if ids[-1] != end[-1]:
            ids = [*ids, *end]
        self.turns = (*self.turns, Turn(turn.content, answer))
        self.cached, self.ends = len(self.turns), [*self.ends, len(ids)]
        new = len(ids) - len(modality)
        self.ids, self.modality, self.units = ids, modality + [int(Modality.TEXT)] * new, units + [NO_UNIT] * new


class _Stopped(StoppingCriteria):
    """Stops generation once the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
