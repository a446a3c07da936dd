"""The Dockerfile, without Docker: what it copies is all that its command needs, and its health check tells health."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from commands import serving
from lines import ROOT

from test_repository import repository_files

pytestmark = pytest.mark.slow

KEY = "a-key-of-the-container"


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and what stands behind it."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    found = [line.partition(" ") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in found]


def only(name: str) -> str:
    """What stands behind an instruction that is there once."""
    (rest,) = (rest for found, rest in instructions() if found == name)
    return rest


@pytest.fixture
def copied(tmp_path) -> Path:
    """The folder `/app` as the image has it: files that git knows and .dockerignore lets through."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    shown = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for rest in (rest for name, rest in instructions() if name == "COPY"):
        *sources, target = rest.split()
        for source in sources:
            assert any(fnmatch.fnmatch(source, pattern) for pattern in shown), f".dockerignore hides {source}"
            files = [path for path in repository_files() if path.is_relative_to(ROOT / source)]
            assert files, f"nothing to copy: {source}"
            for path in files:
                inside = source if path == ROOT / source else path.relative_to(ROOT / source)
                place = tmp_path / "app" / target / inside
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
    return tmp_path / "app"


def test_the_command_of_the_image_serves_a_model_and_its_health_check_passes(copied, after_training):
    (model,) = after_training.glob("outputs/*/*/model")
    command, *words = (word.replace("/model", str(model)) for word in json.loads(only("ENTRYPOINT")))
    variables = {"PYTHONPATH": str(copied / "src"), "VISUALCHAT_API_KEYS": KEY}
    with serving(copied, *words, command=command, **variables) as (_, address):
        port = address.removesuffix("/v1").rpartition(":")[2]
        check = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
        check = [word.replace("8000", port).replace("python", sys.executable) for word in check]
        elsewhere = {**os.environ, "http_proxy": "http://127.0.0.1:1"}  # Docker may hand one on from its own settings
        assert subprocess.run(check, env=elsewhere, check=False).returncode == 0
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {KEY}"}
        )
        assert json.loads(urllib.request.urlopen(request).read())["data"][0]["id"] == "visualchat"
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


def test_the_image_serves_the_port_that_it_names_with_the_tested_versions_of_its_extras():
    assert only("EXPOSE") == "8000"
    install = next(rest for name, rest in instructions() if name == "RUN" and rest.startswith("pip"))
    assert "-c constraints.txt" in install
    extras = re.search(r'"\.\[(.+)\]"', install)
    assert extras
    assert "serve" in extras[1].split(",")
