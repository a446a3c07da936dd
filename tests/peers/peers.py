"""transformers' own test mixins, from its source package, as an importable package.

`make test-peers` fetches the pinned source package into the virtual environment's folder; nothing of it enters this
repository. Modules that the mixins import and the package does not bring are stood in for here: they hold the
generation and export mixins and lists of the Hub's files, none of which the model and processor mixins need.
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import transformers
from transformers.models.auto import modeling_auto

VERSION = "5.23.0"
SHA256 = "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71"
FOLDER = Path(sys.prefix) / "peers" / f"transformers-{VERSION}" / "tests"
PACKAGE = "transformers_peers"

Test = TypeVar("Test", bound=type)


def fetch() -> None:
    """Put the mixins of the pinned source package into `FOLDER`, if they are not there yet."""
    if (FOLDER / "test_modeling_common.py").is_file():
        return
    place = FOLDER.parents[1]
    place.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    download = [sys.executable, "-m", "pip", "download", *options, "--no-binary", "transformers", "--dest", str(place)]
    subprocess.run([*download, f"transformers=={VERSION}"], check=True)
    archive = place / f"transformers-{VERSION}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        archive.unlink()
        sys.exit(f"error: the source package of transformers {VERSION} has sha256 {found}, expected {SHA256}")
    with tarfile.open(archive) as package:
        prefix = f"transformers-{VERSION}/tests/"
        package.extractall(place, [m for m in package if m.name.startswith(prefix)], filter="data")


def mixin(module: str, name: str) -> Any:
    """A class of one of the mixins' modules."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"{FOLDER}: transformers' tests are not there; make test-peers fetches them")
    _stand_ins()
    with patch("transformers.utils.direct_transformers_import", lambda path: transformers):  # a checkout's own
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def _stand_ins() -> None:
    if PACKAGE in sys.modules:
        return
    package = ModuleType(PACKAGE)
    package.__path__ = [str(FOLDER)]
    sys.modules[PACKAGE] = package
    absent: dict[str, dict[str, Any]] = {
        f"{PACKAGE}.exporters": {"__path__": []},
        f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{PACKAGE}.generation": {"__path__": []},
        f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        f"{PACKAGE}.utils": {"__path__": []},
        f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
    }
    for name, content in absent.items():
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
    # The mixins tell base models and what takes labels by these tables, which hold transformers' own models only.
    modeling_auto.MODEL_MAPPING_NAMES["visualchat"] = "VisualChatModel"
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["visualchat"] = "VisualChatForConditionalGeneration"


def skip(reasons: dict[str, str]) -> Callable[[Test], Test]:
    """A decorator that skips tests by name (or by how it begins, with a * at its end), each with its reason."""

    def mark(case: Test) -> Test:
        for pattern, reason in reasons.items():
            names = [n for n in dir(case) if n.startswith("test_") and _fits(n, pattern)]
            assert names, f"no test is called {pattern}"
            for name in names:

                def skipped(self: Any, reason: str = reason) -> None:
                    pytest.skip(reason)

                setattr(case, name, skipped)
        return case

    return mark


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


if __name__ == "__main__":
    fetch()
