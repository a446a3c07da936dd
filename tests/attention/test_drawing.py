"""`python -m visualchat.attention` draws what the definition says, and so does the document."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import Tokens, sees

from visualchat.attention import KINDS, AttentionKind
from visualchat.attention.__main__ import CONTEXTS, TOKENS, drawn, example, main
from visualchat.model.positions import shared_positions

LAYERS = ("image", "mmca_joint", "causal", "image")
"""Of `image_then_self` and of `all_then_image`, early ones before the others."""

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "attention.md"


def by_definition(kind: AttentionKind) -> str:
    layout = example()
    tokens = Tokens(layout.modality, layout.image_ids, layout.unit_ids)
    point = (kind.image_context, kind.softmax)
    marks = {True: "##", False: "ti"}[kind.softmax == "joint"]
    rows = [
        "".join(marks[TOKENS[k] == "I"] if sees(point, tokens, 0, q, k) else "." for k in range(len(TOKENS)))
        for q in range(len(TOKENS))
    ]
    return "\n".join([f"    {TOKENS}", *(f"  {token} {row}" for token, row in zip(TOKENS, rows, strict=True))])


def test_the_command_draws_every_kind(capsys):
    command = [sys.executable, "-m", "visualchat.attention"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pages = [page.partition("\n") for page in output.strip().split("\n\n")]
    assert {head.partition(":")[0]: grid for head, _, grid in pages} == {
        name: by_definition(kind) for name, kind in KINDS.items()
    }
    main(["unit"])
    assert capsys.readouterr().out.strip() in output
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "usage: python -m visualchat.attention" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["mcma"])
    errors = capsys.readouterr().err
    assert "unknown attention kind 'mcma'" in errors
    assert "did you mean mmca?" in errors


def test_the_document_draws_the_same():
    (block,) = re.findall(r"```\n( +self .*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    names, *lines = block.rstrip().splitlines()
    assert names.split() == list(CONTEXTS)
    for place, context in enumerate(names.split()):
        column = [line[4 + 12 * place :][:8] for line in lines]
        grid = drawn(AttentionKind(context, "joint")).splitlines()
        assert column == [line[4:] for line in grid]


def test_the_document_draws_kinds_by_depth_and_positions():
    text = DOCUMENT.read_text()
    (block,) = re.findall(r"```\n( +image_then_self .*?)```", text, flags=re.DOTALL)
    columns = [line[4:].split() for line in block.rstrip().splitlines()[1:]]
    drawings = [[line[4:] for line in drawn(KINDS[kind]).splitlines()] for kind in LAYERS]
    assert columns == [list(row) for row in zip(*drawings, strict=True)]
    (running, shared) = re.findall(r"^ (?:running|shared) +(\d+)$", text, flags=re.MULTILINE)
    assert running == "".join(map(str, range(len(TOKENS))))
    assert shared == "".join(map(str, shared_positions(example().modality, None, None)[0].tolist()))


def test_the_example_has_every_kind_of_token():
    layout = example()
    assert torch.equal(layout.in_label()[0], torch.tensor([token == "L" for token in TOKENS]))
