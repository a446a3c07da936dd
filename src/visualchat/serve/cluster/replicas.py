"""The replicas of a cluster as a backend, and their life: Ray, its Serve and our application in it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from threading import Event
from types import TracebackType
from typing import Any

import ray
from ray import serve
from ray.serve._private.router import SingletonThreadRouter
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import LoggingConfig

from visualchat.serve.backend import Figures, Warmed
from visualchat.serve.cluster.replica import Plan, Replica
from visualchat.serve.cluster.replies import RepeatedReply, no_replica, repeated
from visualchat.serve.cluster.router import ByContent
from visualchat.serve.cluster.routes import route_of, route_of_image
from visualchat.serve.cluster.settings import ClusterSettings
from visualchat.serve.errors import ApiError
from visualchat.serve.protocol import MOST_CHOICES, ChatRequest

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)

HALT_SECONDS = 10.0
"""The longest that the router may take for what it does at the moment when it is halted."""


class Replicas:
    """The backend of which each request is answered by one of several engines.

    Args:
        handle: Of the application.
        seconds: How long a request waits for a replica.
        places: The most requests at a time.
        name: What clients call the model.
    """

    def __init__(self, handle: DeploymentHandle, seconds: float, places: int, name: str) -> None:
        self.places = places
        self.names: tuple[str, ...] = (name,)
        self._handle, self._seconds = handle, seconds
        self._answers = handle.options(stream=True)

    async def __aenter__(self) -> Replicas:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        pass

    async def submit(self, asked: ChatRequest, scope: str) -> RepeatedReply:
        """As `Backend` has it."""
        if asked.seed is None:  # so that the answer can be repeated
            asked = asked.model_copy(update={"seed": secrets.randbelow(2**63 - MOST_CHOICES)})
        route = await asyncio.to_thread(route_of, asked, scope)
        reply = RepeatedReply(partial(self._ask, route, asked, scope))
        try:
            async with self._patience():
                await reply.begin()
        except BaseException:
            reply.cancel()
            raise
        return reply

    async def warm(self, url: str, number: int, scope: str) -> Warmed:
        """As `Backend` has it: where conversations that begin with the image go."""
        route = await asyncio.to_thread(route_of_image, url, scope)
        async with self._patience():
            found = await repeated(lambda: self._handle.warm.remote(route, url, number, scope))
        if isinstance(found, ApiError):
            raise found
        assert isinstance(found, Warmed)
        return found

    def _ask(self, route: str, asked: ChatRequest, scope: str) -> DeploymentResponseGenerator:
        stream = self._answers.answer.remote(route, asked, scope)
        assert isinstance(stream, DeploymentResponseGenerator)
        return stream

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Wait as long as an answer may take."""
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            raise no_replica() from None

    async def figures(self) -> Figures:
        """As `Backend` has it: of all replicas that live now."""
        try:
            found = await self._handle.broadcast("figures").results_async(return_exceptions=True)
        except DeploymentUnavailableError:  # none lives
            found = []
        return Figures.of_all(figures for figures in found if isinstance(figures, Figures))


@contextmanager
def running(plan: Plan, cluster: ClusterSettings) -> Iterator[Replicas]:
    """The replicas while the block runs, and what had to be started for them.

    Raises:
        ValueError: There is no such cluster, or it has no room.
        RuntimeError: The replicas failed to start.
    """
    name = plan.settings.name
    try:
        _connect(cluster)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        try:
            application = _deployment(plan, cluster).bind(plan)
            handle = serve.run(application, name=name, route_prefix=None, logging_config=QUIET)
            yield Replicas(handle, plan.settings.limits.seconds, cluster.most * _places(plan), plan.settings.name)
        finally:
            if cluster.address:  # others use it
                serve.delete(name)
    finally:
        _halt_router()
        ray.shutdown()  # and with it all that it started


def _halt_router() -> None:
    """Let the router of Ray Serve, a thread of this process that asks replicas how busy they are, do nothing more.

    Ray ends a process at once, with exit code 1, whose threads ask it for something after `ray.shutdown`.
    """
    loop = SingletonThreadRouter._asyncio_loop
    if loop is None:  # nothing was routed
        return
    halted = Event()

    def halt() -> None:
        halted.set()
        Event().wait()  # for ever: the thread is a daemon

    loop.call_soon_threadsafe(halt)
    halted.wait(HALT_SECONDS)


def _connect(cluster: ClusterSettings) -> None:
    """Join a cluster that runs, or start one that only this machine reaches and that ends with this process.

    Raises:
        ValueError: There is no such cluster, it has no room, or none can be started.
    """
    if cluster.address is None:
        try:
            ray.init(
                "local",
                include_dashboard=False,
                object_store_memory=cluster.object_store_bytes,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray has no narrower one for what does not start
            raise ValueError(
                f"cluster=ray: Ray did not start on this machine: {error}\n"
                "try again when it has less to do, or set cluster.address to a Ray cluster that runs"
            ) from error
        there = ray.cluster_resources()
        cluster.check_fits(there.get("CPU", 0), there.get("GPU", 0))
        return
    try:
        ray.init(cluster.address, logging_level=logging.WARNING)
    except ConnectionError:
        raise cluster.no_cluster() from None


def _deployment(plan: Plan, cluster: ClusterSettings) -> serve.Deployment:
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
    if cluster.most > cluster.replicas:
        count: dict[str, Any] = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=cluster.replicas,
                max_replicas=cluster.most,
                target_ongoing_requests=cluster.target_requests,
                upscale_delay_s=cluster.grow_seconds,
                downscale_delay_s=cluster.shrink_seconds,
            )
        }
    else:
        count = {"num_replicas": cluster.replicas}
    if cluster.by_content:
        count["request_router_config"] = RequestRouterConfig(
            request_router_class=ByContent,  # type: ignore[arg-type]
            request_router_kwargs={"running": plan.engine["max_running"]},
        )
    deployment: serve.Deployment = serve.deployment(Replica)  # type: ignore[assignment]  # as the decorator it is not
    return deployment.options(
        max_ongoing_requests=_places(plan),
        graceful_shutdown_timeout_s=plan.settings.limits.seconds,  # answers that run end first
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": gpus},
        **count,
    )


def _places(plan: Plan) -> int:
    """The most requests that a replica takes at a time."""
    return int(plan.engine["max_running"]) + int(plan.engine["max_waiting"])
