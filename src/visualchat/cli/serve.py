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
    from visualchat.serve.cluster.settings import ClusterSettings
    from visualchat.serve.settings import Settings

NEEDS = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def keys_of(given: Any) -> tuple[str, ...]:
    """API keys as they are typed: a list, or a text with commas between them."""
    if given is None:
        return ()
    found = given.split(",") if isinstance(given, str) else [str(key) for key in given]
    return tuple(key.strip() for key in found if key.strip())


def run(config: DictConfig) -> None:
    """The command: what may be mistaken first, the model last."""
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ValueError(f"a server needs {', '.join(missing)}: pip install 'visualchat[serve]'")
    from visualchat.serve.address import bound, check_address
    from visualchat.serve.settings import Limits, Settings

    cluster = _cluster(config)
    settings = Settings(
        name=config.name,
        keys=keys_of(config.api_keys),
        reuse_across_keys=config.reuse_across_keys,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        named_image_bytes=config.named_image_bytes,
        limits=Limits(**config.limits),
    )
    check_address(config.host, config.port, settings.keys)
    at = bound(config.host, config.port)
    if cluster is not None:
        _serve_cluster(config, settings, cluster, at)
        return

    import torch

    from visualchat.engine import Engine
    from visualchat.engine.image_store import ImageStore
    from visualchat.model import VisualChatProcessor
    from visualchat.model.saved import load_model, saved_model
    from visualchat.serve.app import build_app
    from visualchat.serve.local import Local
    from visualchat.serve.running import serve

    silence_libraries()
    folder = saved_model(config.folder)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(folder, config.vision, config.language)
    torch.nn.Module.to(model, device)
    engine = Engine(
        model,
        VisualChatProcessor.from_pretrained(folder),
        ImageStore(**config.store),
        **config.engine,
    )
    console = Console(file=sys.stdout)

    def ready() -> None:
        kind, at_ = attention_setting(model.config.attention), _address(config, at)
        console.print(f"{folder}, {kind}, as {settings.name} at {at_}", **PLAIN)

    serve(build_app(Local(engine, settings), settings), at, ready)


def _address(config: DictConfig, at: socket.socket) -> str:
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

    return ClusterSettings(**config.cluster)


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
        at_ = _address(config, at)
        console.print(f"{folder}, replicas: {many}, as {settings.name} at {at_}", **PLAIN)

    with running(plan, cluster) as replicas:
        serve(build_app(replicas, settings), at, ready)


if __name__ == "__main__":
    main()
