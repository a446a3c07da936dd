"""Which replica a conversation goes to: to the one where its first image was shown before.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): every replica has
a score by its own name and the conversation's route, and the highest is the first choice. Nothing is remembered,
several servers agree, and when a replica leaves or joins, only those conversations move that were, or now are, its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from visualchat.engine.image_store import digest
from visualchat.serve.protocol import ChatRequest, ImagePart


def route_of(asked: ChatRequest, scope: str) -> str:
    """What a conversation is routed by: it stays the same from round to round.

    Conversations whose first question has images go by the first of these, so that all that are about one image meet
    where its states are known; others go by their opening texts.
    """
    opening: list[str] = []
    for message in asked.messages:
        for part in message.content:
            if isinstance(part, ImagePart):
                assert part.image_url is not None  # uuids alone were filled in
                return route_of_image(part.image_url.url, scope)
            opening.append(part.text)
        if message.role == "user":
            break
    return digest(scope, "text", *opening)


def route_of_image(url: str, scope: str) -> str:
    """The route of conversations that begin with an image (its data URL)."""
    return digest(scope, "image", url)


def ranked(route: str, names: Iterable[str]) -> list[str]:
    """The names of replicas, the first choice of a route first."""
    return sorted(names, key=lambda name: digest(route, name), reverse=True)


def in_order(route: str, loads: Mapping[str, int], running: int) -> list[str]:
    """The names of replicas in the order in which a request asks them.

    Those that compute as many requests as they can at a time come after all others, the least busy first: the request
    would wait there.

    Args:
        route: Of the request.
        loads: How many requests each replica has in hand.
        running: So many it computes at a time.
    """
    order = ranked(route, loads)
    busy = sorted((name for name in order if loads[name] >= running), key=loads.__getitem__)
    return [name for name in order if loads[name] < running] + busy
