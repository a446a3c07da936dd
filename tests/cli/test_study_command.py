"""Studies: plans that make sense, runs that are shared, continued and refused, and what is left when one is stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from visualchat.cli.config import CONF
from visualchat.cli.shared_runs import require_different, take
from visualchat.studies.kept import Kept, Question, Run, read, write
from visualchat.studies.plan import plan_of
from visualchat.studies.running import Job

PLANS = sorted(path.stem for path in (Path(CONF) / "study").glob("*.yaml"))
MINE = """# @package plan
title: A little study
question: Does it run?
train: [data.train.size=8, data.batch_size=4, trainer.max_epochs=1]
evaluate: ["evaluation.modes=[teacher_forced]", "evaluation.controls=[]", evaluation.dialogues.seen.size=2,
  evaluation.dialogues.unseen.size=1]
factors:
  kind: {causal: [attention=causal], mmca: [attention=mmca]}
seeds: [0]
claims: [{factor: kind, level: mmca, against: causal, expect: worse}]
"""


def composed(command: str, *settings: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, list(settings))


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_makes_sense_and_what_it_types_composes(name):
    values = OmegaConf.to_container(composed("studies", f"study={name}").plan)
    plan = plan_of({**values, "name": name})
    with initialize_config_dir(CONF, version_base="1.3"):
        require_different(plan)
    composed("evaluate", *plan.evaluate)
    assert plan.claims


def test_an_arm_that_trains_the_same_as_another_is_refused():
    values = OmegaConf.to_container(OmegaConf.create(MINE))
    kinds = values["factors"]["kind"]
    with initialize_config_dir(CONF, version_base="1.3"):
        kinds["as it is"] = ["attention=unit"]
        require_different(plan_of({**values, "name": "little"}))
        kinds["as it is"] = []
        with pytest.raises(ValueError, match=r"^study=little: mmca and as it is train the same"):
            require_different(plan_of({**values, "name": "little"}))


LINE = [sys.executable, "-m", "visualchat.cli.study", "--config-dir", "mine", "study=little"]


def typed(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    line = [*LINE, *settings]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def run_of(seed, *train, right="10"):
    code = {"version": "1", "commit": "c" * 40, "dirty": False}
    return Run(("arm",), seed, train, ("evaluation=tiny",), code, 60.0, right, ("red", "blue"))


def job_of(arm, seed, *train):
    return Job((arm,), seed, Path("somewhere"), train, ("evaluation=tiny",))


@pytest.fixture
def at_work():
    """Hydra, as a command has it at work."""
    with initialize_config_dir(CONF, version_base="1.3"):
        yield


@pytest.mark.usefixtures("at_work")
def test_a_run_that_another_study_keeps_is_taken_from_there(tmp_path):
    questions = [Question("seen", "1", number, "colour", 1, "Which?", "red") for number in (1, 2)]
    there = [
        run_of(0, "attention=causal", "trainer.max_epochs=2"),
        run_of(1, "attention=mmca_joint", "attention.image_numbers=learned", "trainer.max_epochs=2", right="01"),
        run_of(2, "attention=causal", "trainer.max_epochs=3"),
    ]
    write(Kept(questions, there), tmp_path / "other.jsonl.xz")
    kept = Kept()
    jobs = [
        job_of("a", 0, "trainer.max_epochs=2", "attention=causal", "attention.image_numbers=none"),
        job_of("b", 1, "trainer.max_epochs=2", "attention=numbered"),
        job_of("b", 0, "trainer.max_epochs=2", "attention=numbered"),
        job_of("c", 2, "trainer.max_epochs=2", "attention=causal"),
    ]
    assert take(jobs, kept, tmp_path, "mine") == ["other", "other"]
    assert [(run.arm, run.seed, run.right, run.study) for run in kept.runs] == [
        (("a",), 0, "10", "other"),
        (("b",), 1, "01", "other"),
    ]
    assert all(run.does(job.arm, job.seed, job.train, job.evaluate) for run, job in zip(kept.runs, jobs, strict=False))
    write(kept, tmp_path / "mine.jsonl.xz")
    assert read(tmp_path / "mine.jsonl.xz") == kept
    assert take(jobs[2:], kept, tmp_path, "mine") == []
    others = Kept([*reversed(questions)], [run_of(5, "attention=unit")])
    assert take(jobs, others, tmp_path, "third") == []  # answers to other questions
    assert take(jobs, Kept(), tmp_path, "other") == []  # what it takes itself is in mine, of which it is not its own


@pytest.mark.slow
def test_the_command_runs_a_plan_of_ones_own_once_and_makes_its_page_again(tmp_path):
    (tmp_path / "mine" / "study").mkdir(parents=True)
    plan = tmp_path / "mine" / "study" / "little.yaml"
    plan.write_text(MINE)
    first = typed(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "2 of 2 runs are missing" in first.stdout
    page = tmp_path / "docs" / "results" / "little.md"
    text = page.read_text()
    assert "2 of 2 runs so far" in text
    assert "| mmca is worse than causal |" in text
    page.write_text(text + "\n## Discussion\n\nIt runs.\n")
    again = typed(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "missing" not in again.stdout
    assert page.read_text() == text + "\n## Discussion\n\nIt runs.\n"
    (plan.parent / "bigger.yaml").write_text(MINE.replace("{causal:", "{unit: [attention=unit], causal:"))
    bigger = typed(tmp_path, "study=bigger", "page_only=true")
    assert bigger.stdout.startswith("2 runs are those of little\n"), bigger.stderr
    assert "2 of 3 runs so far" in (page.parent / "bigger.md").read_text()
    (page.parent / "bigger.jsonl.xz").unlink()
    more = typed(tmp_path, "plan.seeds=[0,1]", "page_only=true")
    assert "2 of 4 runs so far" in page.read_text(), more.stderr
    plan.write_text(MINE.replace("seeds: [0]", "seeds: [0]\nbeside: 1"))
    refused = typed(tmp_path)
    assert refused.returncode == 2
    assert "study=little: the plan has unknown beside" in refused.stderr
    plan.write_text(MINE.replace("attention=causal", "attention=casual"))
    refused = typed(tmp_path)
    assert refused.returncode == 2
    assert "study=little: causal, seed 0 is kept of other settings: results=FOLDER" in refused.stderr
    refused = typed(tmp_path, "again=true")
    assert refused.returncode == 2
    assert "unknown choice attention=casual; did you mean causal?" in refused.stderr
    plan.write_text(MINE.replace("attention=causal", "attention=causal, init=nowhere"))
    refused = typed(tmp_path, "again=true")
    assert refused.returncode == 2
    assert "causal, seed 0 was refused: visualchat-train: " in refused.stderr


@pytest.mark.slow
def test_a_terminated_study_leaves_nothing_running(tmp_path):
    (tmp_path / "mine" / "study").mkdir(parents=True)
    (tmp_path / "mine" / "study" / "little.yaml").write_text(MINE.replace("train.size=8", "train.size=4000"))
    study = subprocess.Popen(LINE, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("metrics.csv")):
        assert study.poll() is None, study.communicate()
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    study.communicate()
    assert study.returncode == 130
    assert not [name for name in Path("/proc").glob("[0-9]*") if folder_of(name) == tmp_path]


def folder_of(process: Path) -> Path | None:
    """Where a process runs; None for one that has ended, or is somebody else's."""
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None
