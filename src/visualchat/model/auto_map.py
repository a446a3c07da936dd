"""How transformers finds this package from a saved folder: one small file there, named by the configuration.

With it `trust_remote_code=True` loads model, processor and pipeline in a process that never imported the package; where
the package is missing, transformers itself says what to install.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils import CONFIG_NAME

FILE = "visualchat_auto.py"

CLASSES = {
    "AutoConfig": "VisualChatConfig",
    "AutoModel": "VisualChatModel",
    "AutoModelForImageTextToText": "VisualChatForConditionalGeneration",
    "AutoModelForMultimodalLM": "VisualChatForConditionalGeneration",
    "AutoProcessor": "VisualChatProcessor",
}
"""transformers' Auto classes -> ours."""

_CONTENT = f'''"""Lets transformers load this folder with trust_remote_code=True; the code is the package visualchat."""

from visualchat.model import {", ".join(sorted(set(CLASSES.values())))}
'''


def write_auto_map(folder: str | Path) -> None:
    """Write the file into a folder that `save_pretrained` has written, and name it in the configuration."""
    (Path(folder) / FILE).write_text(_CONTENT)
    config = Path(folder) / CONFIG_NAME
    fields = json.loads(config.read_text())
    fields["auto_map"] = {auto: f"{FILE.removesuffix('.py')}.{name}" for auto, name in CLASSES.items()}
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
