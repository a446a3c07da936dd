"""`visualchat-convert`: a model of the published code to ours, and back."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from visualchat.cli.config import PLAIN, check_attention, setting, silence_libraries
from visualchat.cli.main import convert as main
from visualchat.model.convert_published import from_published, to_published


def run(config: DictConfig) -> None:
    """The command."""
    silence_libraries()
    console = Console()
    if config.action == "from_published":
        check_attention(config.attention)
        from_published(config.file, config.folder, **instantiate(config.model_settings))
        instantiate(config.processor).save_pretrained(config.folder)
        console.print(
            f"{config.folder}/ is ready; chat with it:\n  visualchat-chat {setting('folder', config.folder)}", **PLAIN
        )
    else:
        to_published(config.folder, config.file)
        console.print(f"{config.file} is ready", **PLAIN)


if __name__ == "__main__":
    main()
