"""Where the configuration tree lies, and the small things that all commands share."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "conf"  # in a wheel
CONF = str(_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "conf")

OUTPUTS = Path("outputs")


def saved_model(folder: str | None) -> Path:
    """The folder of a saved model: the one asked for, or the newest under `outputs/`.

    Raises:
        ValueError: There is none.
    """
    if folder is not None:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"model={folder}: no saved model there (config.json is missing)")
        return Path(folder)
    configs = sorted(OUTPUTS.glob("**/model/config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ValueError(
            f"no saved model under {OUTPUTS}/: train one first (visualchat-train), or name one with model="
        )
    return configs[-1].parent
