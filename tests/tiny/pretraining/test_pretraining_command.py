"""`python -m visualchat.tiny.pretraining` as it is typed: its parts train in processes of their own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from visualchat.tiny import backbone


@pytest.mark.slow
def test_the_line_of_the_documents_keeps_how_far_it_is_and_killed_leaves_no_process(tmp_path):
    shutil.copytree(backbone("language_causal"), tmp_path / "language_causal")
    line = ["-m", "visualchat.tiny.pretraining", "--only", "language-hops", "--out"]
    with subprocess.Popen(
        [sys.executable, *line, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            while not (tmp_path / "language_hops.checkpoint").exists():  # after the first steps of many
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
            process.kill()
            process.communicate(timeout=60)  # until the last of its processes has closed the pipes
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
