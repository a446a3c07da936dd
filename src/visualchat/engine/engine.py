"""The engine: at each step a chunk of new prompts is computed, then one token of every answer in one batch.

Requests wait in the order in which they came, run as soon as there is room, and leave at any step. Between steps
nothing is held but what they need. transformers' continuous batching serves text alone; the words are its.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from visualchat.engine.answering import Answerer, image_size, require_own
from visualchat.engine.batch import Batch
from visualchat.engine.counted import CountedStore
from visualchat.engine.handle import Handle
from visualchat.engine.image_store import GIB, ImageStore, model_state
from visualchat.engine.job import Job, names_of
from visualchat.engine.kept import KeptConversations
from visualchat.engine.request import NotStored, QueueFull, Request
from visualchat.engine.sampling import Samplers, choose
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.growing_cache import GrowingCache
from visualchat.model.images_first import ImagesFirstCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """What an engine has in hand.

    Attributes:
        waiting: Requests that no work was done for yet.
        running: Those that are being prefilled or answered.
        kept: Conversations that later requests may continue.
        kept_bytes: Of their keys and values.
        batch_bytes: Of the running batch.
    """

    waiting: int
    running: int
    kept: int
    kept_bytes: int
    batch_bytes: int


class Engine:
    """Answers many conversations at once with one model.

    Any thread may submit. Between `start` and `close`, or inside `with`, a thread of the engine's own steps; without it
    whoever waits for an answer does.

    Args:
        model: Answers.
        processor: Of the same model.
        store: Where images' states are kept; one of its own if None.
        max_running: The most requests that are computed at a time.
        max_waiting: The most that wait beyond those.
        chunk: So many tokens of prompts are computed between two tokens of the answers, or one image where it has more.
        kept_bytes: The most bytes of keys and values of conversations that may be continued.
    """

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        store: ImageStore | None = None,
        *,
        max_running: int = 16,
        max_waiting: int = 256,
        chunk: int = 512,
        kept_bytes: int = GIB,
    ) -> None:
        for name, found, least in (
            ("max_running", max_running, 1),
            ("max_waiting", max_waiting, 0),
            ("chunk", chunk, 1),
            ("kept_bytes", kept_bytes, 0),
        ):
            if found < least:
                raise ValueError(f"{name} must be {least} or more, found {found}")
        require_own(processor, model)
        self.model, self.processor = model.eval(), processor
        self.store = ImageStore() if store is None else store
        self.max_running, self.max_waiting, self.chunk = max_running, max_waiting, chunk
        self._counted = CountedStore(self.store)
        self._answerer = Answerer(model, processor, self._counted)
        keeps_all, outside = self._answerer.new_cache().keeps_all, model.config.images_outside
        self._batches = keeps_all and not outside  # else each conversation decodes alone
        self._kept = KeptConversations(kept_bytes if keeps_all else 0, can_crop=not outside)
        self._samplers = Samplers(model, processor.end_token_ids[-1])
        self._batch = Batch()
        self._waiting: deque[Job] = deque()
        self._prefilling: deque[Job] = deque()
        self._decoding: list[Job] = []  # row by row of the batch
        self._alone: list[Job] = []  # those that decode with a cache of their own
        self._running: list[Job] = []  # all of those
        self._lock = threading.Condition()  # of what waits and runs
        self._stepping = threading.Lock()  # of all else
        self._thread: threading.Thread | None = None
        self._closed = False

    # Clients

    def submit(self, request: Request) -> Handle:
        """Let a request wait for its turn.

        Raises:
            ValueError: The model cannot answer it.
            OSError: The pixels of an image cannot be read.
            NotStored: It is about images alone, and this model's are not kept.
            QueueFull: As many as there may be are running and waiting.
            RuntimeError: The engine is closed.
        """
        request.check(self.model.config)
        if request.only_images and self.why_not_stored is not None:
            raise NotStored(self.why_not_stored)
        names = names_of(request, image_size(self.model.config))
        ends = frozenset([self.processor.end_token_ids[-1], *request.stop_ids])
        job = Job(request, names, self.processor.tokenizer, ends)
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed; make another one")
            self._waiting = deque(waiting for waiting in self._waiting if waiting.finish is None)
            taken = len(self._waiting) + sum(running.finish is None for running in self._running)
            if taken >= self.max_running + self.max_waiting:
                raise QueueFull(
                    f"{taken} requests are running and waiting, as many as the engine takes (max_running="
                    f"{self.max_running}, max_waiting={self.max_waiting}); try again later"
                )
            self._waiting.append(job)
            self._lock.notify()
        return Handle(self, job)

    @property
    def stats(self) -> EngineStats:
        """Now; it waits for no step."""
        with self._lock:
            waiting, running = (sum(job.finish is None for job in jobs) for jobs in (self._waiting, self._running))
        return EngineStats(waiting, running, len(self._kept), self._kept.nbytes, self._batch.nbytes)

    @property
    def why_not_stored(self) -> str | None:
        """Why this model's images cannot come from a store; None where they can."""
        return self._answerer.why_not_stored

    # The thread

    @property
    def runs(self) -> bool:
        """Whether a thread of its own steps."""
        return self._thread is not None

    def start(self) -> None:
        """Step in a thread from now on."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed; make another one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="visualchat-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Cancel what is running and waiting, forget all conversations, and take no more requests."""
        with self._lock:
            self._closed = True
            self._lock.notify()
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._stepping:
            for job in self._all():
                job.end("cancelled")
            self._thread = None
            self._drop_ended()
            self._kept.clear()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._all())
            if self._closed:
                return
            try:
                self.step()
            except Exception:  # whose clients know it already
                log.exception("a step of the engine failed, and with it all of its requests")

    def _all(self) -> list[Job]:
        with self._lock:
            return [*self._waiting, *self._running]

    # A step

    @torch.no_grad()
    def step(self) -> bool:
        """Compute a chunk of prompts and a token of each answer; False where there is nothing to do."""
        with self._stepping:
            try:
                self._drop_ended()
                self._admit()
                self._prefill()
                self._decode()
                self._drop_ended()
            except BaseException as error:  # a fault of the engine's, or Ctrl-C: whoever waits must know
                told = (
                    error if isinstance(error, Exception) else RuntimeError(f"a step ended by {type(error).__name__}")
                )
                for job in self._all():
                    job.end("error", told)
                self._drop_ended()
                raise
            return bool(self._all())

    def _admit(self) -> None:
        """Let those run that wait longest, as far as there is room."""
        with self._lock:
            free = self.max_running - len(self._running)
            new = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self._prefilling.extend(new)
            self._running.extend(new)
        if new:
            self._kept.of_model(model_state(self.model))
        for job in new:
            self._attempt(job, self._begin)

    def _attempt(self, job: Job, work: Callable[..., Any], *arguments: Any) -> None:
        """Do something for a job; if it fails, so does the job alone."""
        try:
            work(job, *arguments)
        except Exception as error:
            job.cache = None  # which may hold half of something
            job.end("error", error)

    def _begin(self, job: Job) -> None:
        if job.request.only_images:
            return
        job.sampler = self._samplers(job.request)
        known = self._kept.beginning(job.names)
        if known is not None:
            job.done, job.cache = known
            job.cached = job.done
        else:
            job.cache = self._answerer.new_cache()

    def _prefill(self) -> None:
        """Compute the next chunk of prompts, each a part in turn, so that a short one is not held up by a long one."""
        left = self.chunk
        while left > 0 and self._prefilling:
            job = self._prefilling.popleft()
            before = job.done
            if job.finish is None:
                self._attempt(job, self._know if job.request.only_images else self._advance, left)
            left -= job.done - before
            if job.finish is not None:
                self._keep(job, job.cache)
            elif job.done < len(job.request.tokens.ids):
                self._prefilling.append(job)
            elif self._batches:
                self._attempt(job, self._join)
            else:
                self._alone.append(job)

    def _advance(self, job: Job, most: int) -> None:
        """Compute at most so many tokens of a prompt, and the answer's first behind its last."""
        assert job.cache is not None
        assert job.sampler is not None
        end, size = job.cut(most), image_size(self.model.config)
        shown, new = (sum(job.request.tokens.modality[a:b]) // size for a, b in ((0, job.done), (job.done, end)))
        self._counted.computed, self._counted.scope = 0, job.request.scope
        logits = self._answerer.prefill(job.upto(end), list(job.request.images[shown : shown + new]), job.cache)
        if self.why_not_stored is None:
            job.cached += size * (new - self._counted.computed)
        job.done = end
        if end == len(job.request.tokens.ids):
            job.say(job.sampler.choose(logits), logits)

    def _know(self, job: Job, most: int) -> None:
        """Compute the images of a request, unless they are known."""
        images = list(job.request.images)
        self._counted.computed, self._counted.scope = 0, job.request.scope
        if not self._answerer.know(job.upto(len(job.names)), images):
            raise NotStored("the store of images has no room")
        job.cached = image_size(self.model.config) * (len(images) - self._counted.computed)
        job.done = len(job.names)
        job.end("length")

    def _join(self, job: Job) -> None:
        assert job.cache is not None
        job.order = getattr(job.cache, "order", None)
        self._batch.join(job.cache, job.modality(self.model.device))
        self._decoding.append(job)
        job.cache = None

    def _decode(self) -> None:
        """One more token of each answer."""
        self._drop_ended()
        for job in self._alone:
            self._attempt(job, self._decode_alone)
        while self._decoding:
            try:
                logits = self._batch.decode(self.model, [job.said[-1] for job in self._decoding])
            except Exception as error:  # of memory, most likely: the one that came last makes room for the others
                max(self._decoding, key=lambda job: job.begun).end("error", error)
                self._drop_ended()
                continue
            samplers = [job.sampler for job in self._decoding if job.sampler is not None]
            for row, (job, token) in enumerate(zip(self._decoding, choose(samplers, logits), strict=True)):
                job.done += 1
                if isinstance(token, Exception):
                    job.end("error", token)
                else:
                    job.say(token, logits[row : row + 1])
            break

    def _decode_alone(self, job: Job) -> None:
        assert job.sampler is not None
        assert job.cache is not None
        logits = self._answerer.following(job.said[-1], job.cache)
        job.done += 1
        job.say(job.sampler.choose(logits), logits)

    # Who leaves

    def _drop_ended(self) -> None:
        """Give up the places of those that have ended; what was computed of them may be continued, unless it failed."""
        for row in reversed(range(len(self._decoding))):
            job = self._decoding[row]
            if job.finish is not None:
                self._attempt(job, self._copy_out, row)  # without memory for that it is not kept
                self._batch.leave(row)
                self._decoding[row] = self._decoding[-1]
                self._decoding.pop()
        for jobs in (self._prefilling, self._alone):
            for job in [job for job in jobs if job.finish is not None]:
                jobs.remove(job)
                self._keep(job, job.cache)
        with self._lock:
            self._waiting = deque(job for job in self._waiting if job.finish is None)
            self._running = [*self._prefilling, *self._decoding, *self._alone]

    def _copy_out(self, job: Job, row: int) -> None:
        cache = None
        if job.error is None and self._kept.budget:
            cache = self._answerer.new_cache()
            self._batch.copy(row, cache)
            if job.order is not None:
                assert isinstance(cache, ImagesFirstCache)
                cache.order = job.order
        self._keep(job, cache)

    def _keep(self, job: Job, cache: GrowingCache | None) -> None:
        """Let later requests continue a conversation that has ended, as far as it was computed."""
        if cache is not None and job.error is None:
            self._kept.keep(job.names[: job.done], cache)
        job.cache = job.order = job.sampler = None
