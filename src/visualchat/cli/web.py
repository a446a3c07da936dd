"""`visualchat-web`: the server of `visualchat-serve` with a page to chat on, which a browser opens."""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console

from visualchat.cli.config import PLAIN, attention_setting, silence_libraries
from visualchat.cli.main import web as main
from visualchat.cli.serve import address_of, bound_socket, engine_of, settings_of

if TYPE_CHECKING:
    from visualchat.model import VisualChatForConditionalGeneration

SECOND = "second"
"""What requests call the second model."""


def second_model(
    config: DictConfig, first: tuple[Path, VisualChatForConditionalGeneration]
) -> tuple[Path, VisualChatForConditionalGeneration]:
    """The folder of the model that answers beside the first, and that model.

    Raises:
        ValueError: It is not there, or cannot attend by that kind.
    """
    from visualchat.model.saved import load_model, saved_model
    from visualchat.web.second import attend_by, beside

    second = config.page.second
    if second.folder is None:
        return first[0], beside(first[1], second.attention)
    folder = saved_model(second.folder)
    model = load_model(folder, config.vision, config.language)
    if second.attention is not None:
        attend_by(model, second.attention)
    return folder, model


def has_display() -> bool:
    """Whether a browser that is opened would be seen."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def run(config: DictConfig) -> None:
    """The command: what may be mistaken first, the models last."""
    settings = settings_of(config)
    if settings.name == SECOND:
        raise ValueError(f"name={SECOND} is what the second model is called: choose another name")
    if config.get("cluster"):
        raise ValueError(
            "cluster is of visualchat-serve alone: the page draws where an answer looked from a model of its own "
            "process\nleave it out, or type visualchat-serve cluster=ray for the API without the page"
        )
    at = bound_socket(config, settings)
    api = address_of(config, at)

    from visualchat.model.saved import load_model, saved_model
    from visualchat.serve.app import build_app
    from visualchat.serve.local import Local
    from visualchat.serve.running import serve
    from visualchat.web.page import ShownModel, add_page
    from visualchat.web.second import Several

    silence_libraries()
    folder = saved_model(config.folder)
    models = {settings.name: (folder, load_model(folder, config.vision, config.language))}
    if any(config.page.second.values()):
        models[SECOND] = second_model(config, models[settings.name])
    shown = [ShownModel(name, engine_of(config, *found)) for name, found in models.items()]
    gate = build_app(Several([Local(model.engine, replace(settings, name=model.name)) for model in shown]), settings)
    add_page(gate, shown, settings)
    console = Console(file=sys.stdout)

    def ready() -> None:
        for name, (path, model) in models.items():
            console.print(f"{path}, {attention_setting(model.config.attention)}, as {name} at {api}", **PLAIN)
        address = api.removesuffix("/v1")
        console.print(f"the page: {address}", **PLAIN)
        if config.page.open and has_display():
            webbrowser.open(address)

    serve(gate, at, ready)


if __name__ == "__main__":
    main()
