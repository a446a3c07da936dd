"""`visualchat-data references`: the table, the file, the page and the exit code, on one's own data and on a blend."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from visualchat.cli import data
from visualchat.cli.config import CONF
from visualchat.cli.references import references


def row(answer: str, images: int = 1) -> dict:
    question = [{"type": "image", "path": "red.png"}] * images
    content = [*question, {"type": "text", "text": "What <i>differs</i>?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


ROWS = [
    row("Image 1 is red."),
    row("Image 2 is red, unlike image 1."),
    row("Both images are red.", 2),
    row("The image is red.", 2),
    row('It says "image 5".'),
    {"messages": []},
]


@pytest.fixture
def typed(tmp_path):
    """The overrides that name a file of these rows."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    source = ["data=own", "data/source=messages", f"source.root={tmp_path}", "source.files=[rows.jsonl]"]
    return [*source, "part=train", "data.validation=0.0"]


def looked_at(folder: Path, *overrides: str) -> tuple[int, dict]:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("data_tool", ["action=references", *overrides])
    data.skip_damaged_rows(config)
    loaded = data.load(config)
    code = references(loaded.parts, loaded.sources, config, folder)
    return code, json.loads((folder / "references.json").read_text())


def test_what_it_leaves(tmp_path, typed, capsys):
    code, left = looked_at(tmp_path / "run", *typed)
    assert code == 0
    (group,) = left["groups"].values()
    assert (group["references"], group["sound"], group["missing"], group["unclear"], group["quoted"]) == (5, 3, 1, 1, 1)
    assert group["by round"] == {"1": {"references": 5, "unsound": 1}}
    assert [(one["verdict"], one["words"]) for one in left["examples"]] == [
        ("missing", "Image 2"),
        ("unclear", "The image"),
    ]
    assert left["examples"][0]["place"] == "rows.jsonl, line 2"
    page = (tmp_path / "run/references.html").read_text()
    assert "<mark>Image 2</mark> is red, unlike image 1." in page
    assert page.count("<img ") == 3
    assert "<i>" not in page
    assert "named: images" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "expected"), [(0.2, 0), (0.19, 1), (0, 1)])
def test_more_unsound_references_than_allowed_are_an_exit_code(tmp_path, typed, capsys, limit, expected):
    code, _ = looked_at(tmp_path / "run", *typed, f"max_unsound={limit}")
    assert code == expected
    assert ("20.00% of its references are unsound" in capsys.readouterr().out) == bool(expected)


def test_a_limit_that_is_no_share_is_refused(tmp_path, typed):
    with pytest.raises(ValueError, match=r"max_unsound=2: expected a share from 0 to 1"):
        looked_at(tmp_path, *typed, "max_unsound=2")


@pytest.mark.slow
def test_the_command(tmp_path, typed):
    line = [str(Path(sys.executable).parent / "visualchat-data"), "references", *typed, "max_unsound=0.1"]
    done = subprocess.run([*line, "hydra.run.dir=left"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"train: own +5 +7 +5 +0 +1 +0 +1 ", done.stdout), done.stdout
    assert {"references.json", "references.html"} <= {path.name for path in (tmp_path / "left").iterdir()}
