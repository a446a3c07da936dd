"""`visualchat-serve`: a saved model behind OpenAI's chat API."""

from __future__ import annotations

import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Console

from visualchat.cli.config import PLAIN, attention_setting, silence_libraries
from visualchat.cli.main import serve as main

if TYPE_CHECKING:
    from visualchat.engine import Engine
    from visualchat.model import VisualChatForConditionalGeneration
    from visualchat.serve.cluster.settings import ClusterSettings
    from visualchat.serve.settings import Settings

NEEDS = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def keys_of(given: Any) -> tuple[str, ...]:
    """API keys as they are typed: a list, or a text with commas between them."""
    if given is None:
        return ()
    found = given.split(",") if isinstance(given, str) else [str(key) for key in given]
    return tuple(key.strip() for key in found if key.strip())


def settings_of(config: DictConfig) -> Settings:
    """What the server is told.

    Raises:
        ValueError: A setting is out of range, or a library is missing.
    """
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ValueError(f"a server needs {', '.join(missing)}: pip install 'visualchat[serve]'")
    from visualchat.serve.settings import Limits, Settings

    return Settings(
        name=config.name,
        keys=keys_of(config.api_keys),
        reuse_across_keys=config.reuse_across_keys,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        named_image_bytes=config.named_image_bytes,
        limits=Limits(**config.limits),
    )


def bound_socket(config: DictConfig, settings: Settings) -> socket.socket:
    """Where the server will listen.

    Raises:
        ValueError: The address is taken or cannot be, or strangers would reach it without a key.
    """
    from visualchat.serve.address import bound, check_address

    check_address(config.host, config.port, settings.keys)
    return bound(config.host, config.port)


def engine_of(config: DictConfig, folder: Path, model: VisualChatForConditionalGeneration) -> Engine:
    """An engine around the model of a folder, on its device."""
    import torch

    from visualchat.engine import Engine
    from visualchat.engine.image_store import ImageStore
    from visualchat.model import VisualChatProcessor

    torch.nn.Module.to(model, config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Engine(model, VisualChatProcessor.from_pretrained(folder), ImageStore(**config.store), **config.engine)


def run(config: DictConfig) -> None:
    """The command: what may be mistaken first, the model last."""
    if any(config.page.second.values()):
        raise ValueError("page.second is of visualchat-web alone: type that command, or leave it out")
    settings, cluster = settings_of(config), _cluster(config)
    at = bound_socket(config, settings)
    if cluster is not None:
        _serve_cluster(config, settings, cluster, at)
        return

    from visualchat.model.saved import load_model, saved_model
    from visualchat.serve.app import build_app
    from visualchat.serve.local import Local
    from visualchat.serve.running import serve

    silence_libraries()
    folder = saved_model(config.folder)
    engine = engine_of(config, folder, load_model(folder, config.vision, config.language))
    console = Console(file=sys.stdout)

    def ready() -> None:
        kind, at_ = attention_setting(engine.model.config.attention), address_of(config, at)
        console.print(f"{folder}, {kind}, as {settings.name} at {at_}", **PLAIN)

    serve(build_app(Local(engine, settings), settings), at, ready)


def address_of(config: DictConfig, at: socket.socket) -> str:
    """What clients are told."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{at.getsockname()[1]}/v1"


def _cluster(config: DictConfig) -> ClusterSettings | None:
    """What `cluster=ray` says; None for a single engine in this process."""
    if not config.get("cluster"):
        return None
    if find_spec("ray") is None:
        raise ValueError("cluster=ray needs Ray: pip install 'visualchat[cluster]'")
    if config.device is not None:
        raise ValueError(
            f"device={config.device}: each replica computes where Ray puts it; "
            "set cluster.gpus or cluster.cpus, and leave device out"
        )
    from visualchat.serve.cluster.settings import ClusterSettings

    cluster = ClusterSettings(**config.cluster)
    cluster.check_answers()
    return cluster


def _serve_cluster(config: DictConfig, settings: Settings, cluster: ClusterSettings, at: socket.socket) -> None:
    """Serve until a signal comes, by replicas that live as long."""
    os.environ.update(cluster.environment(settings.limits.seconds))
    from visualchat.model.saved import saved_model
    from visualchat.serve.app import build_app
    from visualchat.serve.cluster.replica import Plan
    from visualchat.serve.cluster.replicas import running
    from visualchat.serve.running import serve

    silence_libraries()
    folder = saved_model(config.folder).resolve()
    vision, language = (config[part] and str(Path(config[part]).resolve()) for part in ("vision", "language"))
    plan = Plan(folder, vision, language, {**config.store}, {**config.engine}, settings)
    many = cluster.replicas if cluster.most == cluster.replicas else f"{cluster.replicas} to {cluster.most}"
    console = Console(file=sys.stdout)

    def ready() -> None:
        at_ = address_of(config, at)
        console.print(f"{folder}, replicas: {many}, as {settings.name} at {at_}", **PLAIN)

    with running(plan, cluster) as replicas:
        serve(build_app(replicas, settings), at, ready)


if __name__ == "__main__":
    main()
