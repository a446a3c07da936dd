"""A conversation with a model: any number of rounds, each with any number of images, answers streamed.

The key-value cache is kept between rounds, so a round computes only what is new: its own text, and its images unless an
`ImageStore` knows them, from this conversation or any other. Whatever is taken back, edited, forked, saved or loaded,
the answers are those of a new session that is given the same conversation.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visualchat.attention import Modality
from visualchat.chat.rounds import Round, Timing
from visualchat.chat.saving import Saved, load_conversation, save_conversation
from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.encoding import NO_UNIT, encode_text
from visualchat.engine.answering import Answerer, Tokens, require_own
from visualchat.engine.image_store import ImageStore
from visualchat.engine.job import Job
from visualchat.engine.request import Request, check_settings
from visualchat.engine.sampling import Samplers
from visualchat.engine.spoken import before, pieces, until
from visualchat.images import ImageInput
from visualchat.images.decode import decode_image
from visualchat.images.inputs import image_input, is_image_input
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.growing_cache import GrowingCache

log = logging.getLogger(__name__)


class ChatSession:
    """One conversation; not for use from several threads at once, but sessions in several threads may share a store.

    Args:
        model: Answers.
        processor: Of the same model.
        max_new_tokens: The most tokens of an answer.
        temperature: 0 for greedy answers, else the temperature of sampling.
        store: Where images' states are kept; one of its own if None. Where the kind of attention does not allow it,
            only what precedes is reused, and a given store says so in the log.
        stop: An answer ends before this text, or the first of these texts.
        seed: Of sampling; None to draw from torch's global generator.
        drop_oldest: Whether the oldest rounds are forgotten where the conversation would outgrow the model, which the
            log tells; the others are then computed again, and their images numbered from 1.

    Attributes:
        turns: The rounds so far.
        timing: Of the last answer; None before the first.
    """

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        store: ImageStore | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        drop_oldest: bool = False,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.seed, self.drop_oldest = seed, drop_oldest
        self._check_settings()
        require_own(processor, model)
        self.store = ImageStore() if store is None else store
        self._answerer = Answerer(model, processor, self.store)
        self._samplers = Samplers(model, processor.end_token_ids[-1])
        if store is not None and self.why_not_stored is not None:
            store.say_once(f"images are not reused but as part of what precedes them: {self.why_not_stored}")
        self._open: weakref.ref[Generator[str, None, None]] | None = None  # else neither would go while it is unread
        self.timing: Timing | None = None
        self.turns: tuple[Turn, ...] = ()
        self._forget()

    @property
    def why_not_stored(self) -> str | None:
        """Why this model's images cannot come from a store; None where they can."""
        return self._answerer.why_not_stored

    def reset(self) -> None:
        """Start a new conversation; an answer that is still streaming is cut short."""
        self._close()
        self._forget()

    def _close(self) -> None:
        """Cut an answer short that was not read to its end."""
        if self._open is not None and (stream := self._open()) is not None:
            stream.close()
        self._open = None

    def _check_settings(self) -> None:
        check_settings(self.max_new_tokens, self.temperature, self.stop, seed=self.seed)

    def _forget(self) -> None:
        self.generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        self._restart((), [])

    def _restart(self, turns: tuple[Turn, ...], said: list[list[int]]) -> None:
        """Make these rounds the conversation, answers by their own tokens; nothing of it is computed."""
        self.turns = ()
        self.rounds: list[Round] = []
        self.ids: list[int] = []
        self.modality: list[int] = []
        self.units: list[int] = []
        self.cached = 0  # rounds that the cache holds
        self.cache: GrowingCache = self._answerer.new_cache()
        for turn, answer in zip(turns, said, strict=True):
            tokens, _ = self._encode(Turn(turn.content))
            self._append(turn, tokens, answer)

    def _append(self, turn: Turn, tokens: Tokens, said: list[int], held: int | None = None) -> None:
        """Take an answered round into the conversation."""
        self.ids = tokens.ids + said
        self.modality = tokens.modality + [int(Modality.TEXT)] * len(said)
        self.units = tokens.units + [NO_UNIT] * len(said)
        self.turns, self.rounds = (*self.turns, turn), [*self.rounds, Round(said, len(self.ids), held or len(self.ids))]

    @property
    def images(self) -> int:
        """Images sent so far; the next is image `images + 1`."""
        return sum(len(turn.images) for turn in self.turns)

    def undo(self) -> None:
        """Take the last round back; an answer that is still streaming is cut short first.

        Raises:
            ValueError: There is no round.
        """
        self._close()
        if not self.turns:
            raise ValueError("there is no round to take back")
        self._keep(len(self.turns) - 1)

    def _keep(self, count: int) -> None:
        """Take back all but the first rounds; what is computed of those stays, where a cache can be cut."""
        turns, rounds = self.turns[:count], self.rounds[:count]
        outside = self.model.config.images_outside  # the cache holds them apart from its tokens
        if not count or self.cached < count or outside or not self._crop(rounds[-1].held):
            self._restart(turns, [round.said for round in rounds])
            return
        end = rounds[-1].end
        self.ids, self.modality, self.units = self.ids[:end], self.modality[:end], self.units[:end]
        self.turns, self.rounds, self.cached = turns, rounds, count

    def _crop(self, length: int) -> bool:
        """Cut the cache to the first tokens of the conversation; False where it has layers that cannot be cut."""
        if not self.cache.keeps_all:
            return False
        self.cache.crop(length - self.cache.get_seq_length())
        return True

    def edit(self, number: int, question: str) -> Generator[str, None, None]:
        """Ask another question in place of that of a round, with the same images.

        That round and those behind it are taken back once the new one counts.

        Args:
            number: The round, counted from 1.
            question: The new one.

        Returns:
            The answer, as from `ask`.

        Raises:
            ValueError: There is no such round, or as `ask`.
        """
        self._close()
        if not 1 <= number <= len(self.turns):
            raise ValueError(f"there is no round {number} to edit: the conversation has {len(self.turns)}")
        images = self.turns[number - 1].images
        course = self.fork()
        course._keep(number - 1)
        return self._send(course, Turn.ask(question, images))

    def fork(self) -> ChatSession:
        """Another session that continues from here on its own; no state is computed or copied for it.

        An answer that is still streaming is cut short first.
        """
        self._close()
        twin = copy.copy(self)
        twin.cache = copy.copy(self.cache)
        twin.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        if self.generator is not None:
            twin.generator = torch.Generator()
            twin.generator.set_state(self.generator.get_state())
        return twin

    def save(self, folder: str | Path) -> None:
        """Keep the conversation, its images and its settings in a folder, for `load`.

        Its `dialogue.jsonl` is data as `data/source=messages` reads it.
        An answer that is still streaming is cut short first.

        Raises:
            ValueError: There is no round, or the folder is not empty.
        """
        self._close()
        settings = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "stop": list(self.stop),
            "seed": self.seed,
            "drop_oldest": self.drop_oldest,
        }
        drawn = None if self.generator is None else self.generator.get_state()
        save_conversation(Saved(self.turns, [round.said for round in self.rounds], settings, drawn), Path(folder))

    def load(self, folder: str | Path) -> None:
        """Continue a saved conversation, with its settings, in place of this one; it is computed with the next round.

        Answers keep their tokens where this tokenizer reads them as the same text.

        Raises:
            ValueError: The folder holds no conversation, or it cannot be read; this one is as before then.
        """
        self._close()
        saved = load_conversation(Path(folder))
        tokenizer, end = self.processor.tokenizer, self.processor.end_token_ids
        said = []
        known = range(self.model.get_input_embeddings().num_embeddings)
        for turn, answer in zip(saved.turns, saved.said, strict=True):
            assert turn.answer is not None
            same = answer[-len(end) :] == end and all(id in known for id in answer)
            same = same and tokenizer.decode(answer, skip_special_tokens=True) == turn.answer
            said.append(answer if same else [*encode_text(tokenizer, turn.answer), *end])
        for name, value in saved.settings.items():
            setattr(self, name, tuple(value) if name == "stop" else value)
        self._forget()
        if self.generator is not None and saved.drawn is not None:
            self.generator.set_state(saved.drawn)
        self._restart(saved.turns, said)

    def ask(self, question: str, images: Sequence[ImageInput] = ()) -> Generator[str, None, None]:
        """Send a round and stream the answer in pieces; the round counts once the stream is read to its end or closed.

        An earlier answer that is still streaming is cut short first. If computing the answer fails, reading it raises
        the error, and the conversation is as before.

        Raises:
            ValueError: An image cannot be read, the question is empty, or the conversation would outgrow the model.
                Nothing is sent then.
        """
        self._close()
        given = [images] if is_image_input(images) else images
        names = [f"image {number}" for number in range(1, len(given) + 1)]
        read = [decode_image(image_input(image, name), name) for image, name in zip(given, names, strict=True)]
        return self._send(self, Turn.ask(question, read))

    def _send(self, course: ChatSession, turn: Turn) -> Generator[str, None, None]:
        """Begin a round; `course` is as of `_stream`."""
        course, tokens, images = course._fitting(turn)
        request = Request(tokens, (), self.max_new_tokens, self.temperature, generator=course.generator, stop=self.stop)
        stream = self._stream(course, turn, request, images)
        self._open = weakref.ref(stream)
        return stream

    def _fitting(self, turn: Turn) -> tuple[ChatSession, Tokens, list[Image.Image]]:
        """This session, or one without its oldest rounds where they may be dropped and must; and as of `_encode`."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens, shown = self._encode(turn)
        length = len(tokens.ids)
        if length + self.max_new_tokens <= limit:
            return self, tokens, shown
        if self.drop_oldest:
            shorter = self.fork()
            for count in range(1, len(self.turns) + 1):
                shorter._restart(self.turns[count:], [round.said for round in self.rounds[count:]])
                tokens, shown = shorter._encode(turn)
                if len(tokens.ids) + self.max_new_tokens <= limit:
                    log.warning("the conversation is full: the oldest %d of its rounds are dropped", count)
                    return shorter, tokens, shown
        raise ValueError(
            f"the conversation has {length} tokens and {self.max_new_tokens} are kept for the answer: more than "
            f"the {limit} that the model can hold; start a new one"
        )

    def _encode(self, turn: Turn) -> tuple[Tokens, list[Image.Image]]:
        """The whole conversation with this turn open, and the images that the cache does not hold."""
        encoding = self.processor.encode(Dialogue((*self.turns, turn)), done=len(self.turns))
        images: list[Any] = [image for new in (*self.turns[self.cached :], turn) for image in new.images]
        tokens = Tokens(
            self.ids + encoding.input_ids,
            self.modality + encoding.mm_token_type_ids,
            self.units + encoding.unit_ids,
        )
        return tokens, images

    def _stream(
        self, course: ChatSession, turn: Turn, request: Request, images: list[Image.Image]
    ) -> Generator[str, None, None]:
        """Compute the answer as it is read; the round then counts, and this session goes the given course.

        Args:
            course: This session, or what it is without some of its rounds.
            turn: Open.
            request: For the answer.
            images: Those that the cache does not hold.
        """
        job = Job(request, [], self.processor.tokenizer, frozenset(self.processor.end_token_ids[-1:]))
        drawn = None if course.generator is None else course.generator.get_state()
        counts = whole = True
        try:
            yield from until(request.stop, pieces(job.tokenizer, course._said(job, images)))
        except GeneratorExit:
            raise
        except Exception:
            counts = False
            raise
        except BaseException:  # Ctrl-C within a step
            whole = False
            raise
        finally:
            job.end("cancelled")
            if counts and job.said:
                course._close_turn(turn, job, whole=whole)
                vars(self).update(vars(course) | {"_open": self._open})
            else:
                course._restart(course.turns, [round.said for round in course.rounds])
                if course.generator is not None and drawn is not None:
                    course.generator.set_state(drawn)

    def _said(self, job: Job, images: list[Image.Image]) -> Iterator[int]:
        """The answer's tokens; each is computed when it is asked for."""
        sampler = self._samplers(job.request)
        logits = self._answerer.prefill(job.request.tokens, images, self.cache)
        while True:
            job.say(sampler.choose(logits), logits)
            yield job.said[-1]
            if job.finish is not None:
                return
            logits = self._answerer.following(job.said[-1], self.cache)

    def _close_turn(self, turn: Turn, job: Job, *, whole: bool) -> None:
        """Take the answered round into the conversation; an answer that was cut short gets its end token.

        Args:
            turn: Open.
            job: The answer.
            whole: Whether the cache holds no half of a step.
        """
        assert job.first is not None
        assert job.ended is not None
        tokenizer, end, tokens = self.processor.tokenizer, self.processor.end_token_ids, job.request.tokens
        self.timing = Timing(job.first - job.begun, len(job.said), job.ended - job.begun)
        said, answer = job.said, tokenizer.decode(job.said, skip_special_tokens=True)
        stopped = before(job.request.stop, answer)
        if stopped is not None:  # its tokens may reach into the stop text: they are computed again with the next round
            answer, said = stopped, [*encode_text(tokenizer, stopped), *end]
            whole = whole and self._crop(len(tokens.ids))
        elif said[-1] != end[-1]:
            said = [*said, *end]
        self._append(Turn(turn.content, answer), tokens, said, self.cache.get_seq_length())
        self.cached = len(self.turns)
        if not whole:
            self._restart(self.turns, [round.said for round in self.rounds])
