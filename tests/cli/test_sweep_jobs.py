"""A job of a sweep that is a process of its own: a signal to the sweep reaches it once, and its end ends the sweep."""

import signal
import sys

import pytest

from visualchat.cli import sweep_jobs as jobs

JOB = """
import os, signal
number = signal.{name}
signal.signal(number, lambda *_: os._exit(7))
os.kill(os.getppid(), number)  # the sweep is asked to end
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_is_handed_on_and_ends_the_sweep(monkeypatch, tmp_path, capsys, name, code):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    monkeypatch.setattr(jobs, "job_command", lambda module, run: [sys.executable, "-c", JOB.format(name=name)])
    monkeypatch.setattr(jobs, "command_to_resume", lambda run: f"again {run}")
    with pytest.raises(SystemExit) as left:
        jobs.run_job("any", tmp_path)
    assert left.value.code == code
    assert capsys.readouterr().err == f"resume the sweep with: again {tmp_path}\n"
    assert signal.getsignal(number) == before


def test_a_job_that_fails_by_itself_is_an_error_of_that_job(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "job_command", lambda module, run: [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(RuntimeError, match="failed with exit code 1; its message stands above"):
        jobs.run_job("any", tmp_path)
