"""`visualchat-serve`: a saved model behind OpenAI's chat API."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from visualchat.cli.config import PLAIN, attention_setting, silence_libraries
from visualchat.cli.main import serve as main

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
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{at.getsockname()[1]}/v1"
    console = Console(file=sys.stdout)

    def ready() -> None:
        console.print(
            f"{folder}, {attention_setting(model.config.attention)}, as {settings.name} at {address}", **PLAIN
        )

    serve(build_app(Local(engine, settings), settings), at, ready)


if __name__ == "__main__":
    main()
