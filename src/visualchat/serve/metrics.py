"""What `/metrics` tells, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from visualchat.engine import Answer
from visualchat.serve.backend import Figures

TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts of one server, in a registry of its own.

    Attributes:
        requests: For answers, by HTTP status.
        in_hand: Those that have not ended.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "visualchat_requests", "Requests for answers, by HTTP status.", ["status"], registry=self.registry
        )
        self.in_hand = Gauge("visualchat_requests_in_hand", "Requests that have not ended.", registry=self.registry)
        self._first = Histogram(
            "visualchat_time_to_first_token_seconds",
            "From submission to the first token.",
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self._prompt, self._cached, self._said = (
            Counter(f"visualchat_{name}_tokens", text, registry=self.registry)
            for name, text in (
                ("prompt", "Tokens of prompts."),
                ("cached", "Those of them whose states were known."),
                ("answer", "Tokens of answers."),
            )
        )
        self._store = {
            name: Gauge(f"visualchat_image_store_{name}", f"{name} of the store of images.", registry=self.registry)
            for name in ("hits", "misses", "entries", "device_bytes", "host_bytes")
        }

        self._replicas = Gauge(
            "visualchat_replica_requests_in_hand",
            "Requests of each replica that have not ended, by its machine and process.",
            ["replica"],
            registry=self.registry,
        )

    def watch(self, in_hand: Callable[[], int]) -> None:
        """Tell how many requests are in hand when it is asked."""
        self.in_hand.set_function(in_hand)

    def note(self, answer: Answer) -> None:
        """Count an answer that has ended."""
        if answer.first_token is not None:
            self._first.observe(answer.first_token)
        self._prompt.inc(answer.usage.prompt_tokens)
        self._cached.inc(answer.usage.cached_tokens)
        self._said.inc(answer.usage.answer_tokens)

    def text(self, figures: Figures) -> bytes:
        """All of it now, with what the backend tells."""
        for name, gauge in self._store.items():
            gauge.set(getattr(figures.store, name))
        self._replicas.clear()  # of those that are gone
        for replica, count in figures.in_hand.items():
            self._replicas.labels(replica).set(count)
        return generate_latest(self.registry)
