import sys
import threading

import pytest

from visualchat.studies import running
from visualchat.studies.plan import plan_of
from visualchat.studies.running import Job, jobs_of, lines, run_all


def job(tmp_path, name: str) -> Job:
    return Job((name,), 0, tmp_path / name, ("attention=causal",), ("evaluation=tiny",))


def typed(monkeypatch, **programs: str) -> None:
    """Each job's Python program in place of its command lines."""
    monkeypatch.setattr(running, "lines", lambda job: [[sys.executable, "-c", programs[job.name.split(",")[0]]]])


def test_jobs_come_seed_by_seed_in_folders_of_their_own(tmp_path):
    factors = {"kind": {"a b": ["x=1"], "a/b": ["x=2"]}, "size": {"1": [], "2": ["y=2"]}}
    plan = plan_of({"name": "n", "title": "t", "question": "?", "factors": factors, "seeds": [3, 4]})
    found = jobs_of(plan, tmp_path)
    assert [(item.seed, item.arm) for item in found[:5]] == [(3, arm) for arm in plan.arms] + [(4, plan.arms[0])]
    assert len({item.folder for item in found}) == 8


def test_what_a_stopped_job_finished_is_not_run_again(tmp_path):
    todo = job(tmp_path, "a")
    train, evaluate = lines(todo)
    assert train[2:5] == ["visualchat.cli.train", "attention=causal", "seed=0"]
    assert "resume=auto" in train
    assert evaluate[2:5] == ["visualchat.cli.evaluate", f"folder='{todo.folder}/light'", "evaluation=tiny"]
    (todo.folder / "light").mkdir(parents=True)
    assert len(lines(todo)) == 2  # the model is there, but not the figures that come last
    (todo.folder / "metrics.json").write_text("{}")
    assert [line[2] for line in lines(todo)] == ["visualchat.cli.evaluate"]
    other = Job(todo.arm, 0, todo.folder, todo.train, ("evaluation=none",))
    assert todo.evaluation != other.evaluation


def test_a_failed_job_does_not_stop_the_others_and_is_named(tmp_path, monkeypatch):
    typed(monkeypatch, a="import sys; sys.exit('no memory')", b="print('good')", c="print('good')")
    ends = {}
    run_all(
        [job(tmp_path, name) for name in "abc"], 2, lambda _: None, lambda item, error: ends.update({item.name: error})
    )
    assert ends["b, seed 0"] is ends["c, seed 0"] is None
    assert ends["a, seed 0"].startswith("exit code 1, no memory (")
    assert (tmp_path / "b" / "run.log").read_text() == "good\n"


def test_refused_settings_end_the_study_at_once(tmp_path, monkeypatch):
    refused = "import sys; print('begins\\nvisualchat-train: unknown x\\ndid you mean y?'); sys.exit(2)"
    typed(monkeypatch, a=refused, b="import time; time.sleep(600)", c=f"open({str(tmp_path / 'never')!r}, 'w')")
    with pytest.raises(ValueError, match=r"a, seed 0 was refused: visualchat-train: unknown x did you mean y\? \("):
        run_all([job(tmp_path, name) for name in "abc"], 2, lambda _: None, lambda *_: None)
    assert not (tmp_path / "never").exists()


def test_an_interrupt_ends_the_processes_which_may_save_what_they_have(tmp_path, monkeypatch):
    saves = "import signal, sys, time; signal.signal(15, lambda *_: (open({path!r}, 'w').close(), sys.exit(143)));"
    path = str(tmp_path / "saved")
    ready = "open({path!r} + '.ready', 'w').close(); time.sleep(600)"
    typed(monkeypatch, a=(saves + ready).format(path=path), b="print('quick')")

    def interrupted(item: Job, error: str | None) -> None:
        assert (item.name, error) == ("b, seed 0", None)
        while not (tmp_path / "saved.ready").exists():
            threading.Event().wait(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([job(tmp_path, "a"), job(tmp_path, "b")], 2, lambda _: None, interrupted)
    assert (tmp_path / "saved").exists()
