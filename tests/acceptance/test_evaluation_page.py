"""The lines of docs/evaluation.md that build on each other: two evaluations, one scored again, both compared."""

import json
import re

import pytest
from commands import only_run, run
from composing import composed
from lines import ROOT, lines_of
from shrinking import ELSEWHERE, small

pytestmark = pytest.mark.slow

PATTERN = next(pattern for pattern, why in ELSEWHERE.items() if "test_evaluation_page.py" in why)


def test_the_page_can_be_typed(after_training):
    folder = after_training
    trained = str(only_run(folder).relative_to(folder))
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    found = [line for line in lines_of("page", page) if line.typed and line.words[0] == "visualchat-evaluate"]
    lines = [line for line in found if re.search(PATTERN, " ".join(line.words))]
    assert len(lines) == 4
    for line in lines:
        words = [re.sub("outputs/(first|second)", trained, word) for word in line.words]
        done = run(folder, *words, *small(words[0], composed(words))).ok()
    one, two = folder / "outputs/one", folder / "outputs/two"
    assert (one / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()
    (again,) = folder.glob("outputs/evaluations/*/*/metrics.json")
    before, after = (json.loads(path.read_text()) for path in (one / "metrics.json", again))
    assert {name: after[name] for name in before} == before
    assert "rouge_l/all" in after.keys() - before.keys()
    (page,) = folder.glob("outputs/evaluations/*/*/comparison.html")
    assert "difference +0.0 points" in page.read_text(encoding="utf-8")
    assert "questions are the same as in outputs/one" in done.out
