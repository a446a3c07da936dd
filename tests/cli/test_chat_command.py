"""`visualchat-chat` as it is typed, in a process of its own."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_command_obeys_in_a_process_of_its_own(make_model, processor, tmp_path):
    make_model(attention_kind="unit").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    typed = (
        "/draw 1",
        "What is it?",
        "/draw 1",
        "And this?",
        "/undo",
        "/edit 1 Which?",
        "/images",
        "/save kept",
        "/reset",
        "/load kept",
        "Sure?",
        "h\udcffi",  # a byte that is no text
        "/stats",
        "/quit",
    )
    done = subprocess.run(
        [Path(sys.executable).parent / "visualchat-chat", "folder=model", "max_new_tokens=4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        input="".join(f"{line}\n" for line in typed),
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "the text is not valid: '\\udcff' at character" in done.stdout
    assert "Taken back; 1 rounds are left." in done.stdout
    assert "Image 1: 64 x 64 pixels, with question 1" in done.stdout
    assert "1 rounds with 1 images are loaded." in done.stdout
    assert "Images: 2 computed, 2 reused, 2 kept" in done.stdout  # number 1, number 2; the edited and the loaded one
    assert (tmp_path / "kept" / "image-1.png").is_file()


@pytest.mark.slow
def test_a_terminal_is_put_back_when_the_chat_is_ended_by_a_signal(make_model, processor, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    ours, theirs = pty.openpty()
    before, shown = termios.tcgetattr(ours), b""
    chat = subprocess.Popen(
        [Path(sys.executable).parent / "visualchat-chat", "folder=model"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    while b"you> " not in shown:
        assert select.select([ours], [], [], 120)[0]
        shown += os.read(ours, 1 << 16)
    assert termios.tcgetattr(ours) != before
    chat.terminate()
    assert chat.wait(60) == 128 + signal.SIGTERM
    assert termios.tcgetattr(ours) == before
