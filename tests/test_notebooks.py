"""The notebooks run from top to bottom, each in a process of its own, and are kept without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from visualchat.studies import kept as keeping
from visualchat.studies.kept import Kept, Question, Run
from visualchat.tiny import HopDialogues, TinyDialogues

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

RUN = """
import json, sys
from matplotlib import pyplot as plt

names = {}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        for figure in map(plt.figure, plt.get_fignums()):
            figure.canvas.draw()
            print("figure with", sum(axes.has_data() for axes in figure.axes), "of", len(figure.axes), "axes drawn")
        plt.close("all")
"""

PLAN = """# @package plan
title: {title}
question: Which?
factors: {{kind: {{causal: [], mmca: [attention=mmca], unit: [attention=unit]}}}}
seeds: [0, 1]
apart: [describe]
"""


def printed(name: str, folder: Path) -> str:
    """What the cells of a notebook print; every axes that they make has something in it."""
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", RUN, str(ROOT / "notebooks" / f"{name}.ipynb")]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = re.findall(r"figure with (\d+) of (\d+) axes drawn", done.stdout)
    assert figures
    assert all(drawn == made for drawn, made in figures)
    return done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_a_dialogue_goes_from_disk_to_loss(tmp_path):
    said = printed("dialogue_to_loss", tmp_path)
    by_hand, models = re.search(r"their mean, ([\d.]+); the model's own forward pass says ([\d.]+)", said).groups()
    assert float(by_hand) == pytest.approx(float(models), abs=2e-6)
    first, last = map(float, re.search(r"loss of the first step ([\d.]+), of the last ([\d.]+)", said).groups())
    assert last < first / 2
    assert said.count("figure with") == 5


@pytest.mark.slow
def test_mmca_by_hand_is_the_packages(tmp_path):
    said = printed("mmca_by_hand", tmp_path)
    assert "an image token's output is its own value: True" in said
    assert "images computed: 2 by the chat before, 0 now" in said
    assert "logits have the same bits: True" in said
    assert all(float(most) < 1e-12 for most in re.findall(r"differs (?:from \w+ attention )?by at most (\S+)", said))


def made_up(folder: Path, name: str, dialogues: TinyDialogues) -> None:
    """A study of these dialogues' questions, in which the third arm is wrong wherever the answer is yes."""
    questions = [
        Question("seen", sketch.id, number, turn.question.kind, len(sketch.scenes), turn.question.text, "yes")
        for sketch in map(dialogues.sketch, range(len(dialogues)))
        for number, turn in enumerate(sketch.rounds, start=1)
    ]
    kept = Kept()
    for arm in ("causal", "mmca", "unit"):
        for seed in (0, 1):
            right = [arm != "unit" and (place + seed) % 7 > 0 for place in range(len(questions))]
            answers = tuple("yes" if one else "no" for one in right)
            marks = "".join(map(str, map(int, right)))
            kept.add(Run((arm,), seed, (), (), {"commit": "0123456789"}, 60.0, marks, answers), questions)
    for part in ("conf/study", "docs/results"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "study" / f"{name}.yaml").write_text(PLAN.format(title=name.title()))
    keeping.write(kept, folder / "docs" / "results" / f"{name}.jsonl.xz")


KEPT = [path.name.removesuffix(".jsonl.xz") for path in (ROOT / "docs" / "results").glob("*.jsonl.xz")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "studies", [("first", "second"), *([KEPT] if KEPT else [])], ids=["made up", "kept"][: 1 + bool(KEPT)]
)
def test_the_results_are_explored_whatever_studies_there_are(tmp_path, studies):
    if studies is KEPT:
        said = printed("results", ROOT / "notebooks")
    else:
        made_up(tmp_path, "first", TinyDialogues("validation", size=40))
        made_up(tmp_path, "second", HopDialogues("validation", size=40))
        said = printed("results", tmp_path)
        assert "First\n   3 of 3 arms, 6 runs" in said
        assert "figure with 6 of 6 axes drawn" in said  # all questions, and the five hops of the second
    for name in studies:
        assert f"{name}: " in said
    assert said.count("figure with") >= 3 * len(studies)
    assert len(re.findall(r"always right under .*, never under .*: [\d,]+", said)) == len(studies)
