"""A silent rank: the others end with a word to the person, and kill what they started, stopped processes too."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from visualchat.training.stopping import RunStopped
from visualchat.training.strategies.silent_ranks import RankTimeout, ending_silence, patience

# what gloo says of a receive, torch's store of a start, gloo of a process that died
SILENT = ["Timed out waiting 5000ms for recv operation", "Timed out after 6 seconds", "Connection closed by peer"]


@pytest.fixture
def stopped():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def trainer_of(*processes, rank=0, world_size=2):
    launcher = object.__new__(_SubprocessScriptLauncher)
    launcher.procs = [*processes]
    return SimpleNamespace(
        strategy=SimpleNamespace(launcher=launcher),
        world_size=world_size,
        global_rank=rank,
        is_global_zero=rank == 0,
    )


@pytest.mark.parametrize("said", SILENT)
def test_the_run_ends_and_kills_the_stopped_process(stopped, said):
    message = r"rank 0 waited in vain for another of the 2 processes"
    with pytest.raises(RunStopped, match=message) as ended, ending_silence(trainer_of(stopped)):
        raise RuntimeError(said)
    assert ended.value.code == 1
    assert stopped.wait(timeout=30) == -signal.SIGKILL


def test_another_rank_speaks_where_the_first_is_silent(capsys):
    with pytest.raises(RunStopped), ending_silence(trainer_of(rank=1)):
        raise RuntimeError(SILENT[0])
    assert "rank 1 waited in vain" in capsys.readouterr().err


def test_other_errors_stay_what_they_are(stopped):
    with pytest.raises(ValueError, match="a row is wrong"), ending_silence(trainer_of(stopped)):
        raise ValueError("a row is wrong")
    with pytest.raises(RuntimeError, match="Timed out"), ending_silence(trainer_of(world_size=1)):
        raise RuntimeError(SILENT[0])


@pytest.mark.parametrize("seconds", [0, -3])
def test_a_timeout_is_greater_than_nothing(seconds):
    with pytest.raises(ValueError, match=f"a timeout of {seconds} seconds: expected more than 0"):
        patience(seconds)
    with pytest.raises(ValueError, match=f"rank_timeout={seconds}, expected seconds greater than 0"):
        RankTimeout(seconds)
