"""What takes long before the first step shows a bar from its beginning: by rows, whatever the clock says."""

import io
import json
import re
import sys

import pytest

from visualchat.data import progress
from visualchat.data.batching import lengths
from visualchat.data.sources import Llava, base
from visualchat.dialogue import Dialogue, Turn

ROWS = 2500


class Terminal(io.StringIO):
    """An error stream that is a terminal, as a person sees it."""

    def isatty(self):
        return True

    def shown(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def watch(monkeypatch) -> Terminal:
    """Put a terminal in the place of the error stream; from within a test, because pytest puts its own there before."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_a_large_corpus_shows_a_bar_before_its_first_row_is_looked_at(tmp_path, monkeypatch):
    """A million rows are read like these: each row as it comes, the bar moved at every thousandth."""
    terminal = watch(monkeypatch)
    said = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    rows = [{"id": f"{number:07}", "conversations": said} for number in range(ROWS)]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    size = (tmp_path / "chat.json").stat().st_size
    monkeypatch.setattr(base, "_LARGE", size)
    seen: list[str] = []
    moved: list[tuple[int, float]] = []
    look = Llava._id

    def id_of(self, file, row):
        seen.append(terminal.shown())
        return look(self, file, row)

    update = progress.Progress.update

    def move(self, task, *, completed):
        moved.append((len(seen), completed / size))
        update(self, task, completed=completed)

    monkeypatch.setattr(Llava, "_id", id_of)
    monkeypatch.setattr(progress.Progress, "update", move)
    assert len(Llava(tmp_path, "chat", ["chat.json"])) == len(seen) == ROWS
    assert "reading chat" in seen[0]
    assert [rows for rows, _ in moved] == [0, 1000, 2000]
    for before, share in moved:
        assert share == pytest.approx(before / ROWS, abs=0.01)
    assert max(map(len, terminal.shown().splitlines())) <= 80


def test_planning_packed_rows_shows_a_bar_before_the_first_dialogue_is_measured(processor, monkeypatch):
    terminal = watch(monkeypatch)
    dialogues = [Dialogue((Turn.ask("Q", answer="A"),), str(number)) for number in range(600)]
    seen: list[str] = []
    done: list[int] = []
    encode = lengths.encode_example

    def look(*arguments):
        seen.append(terminal.shown())
        return encode(*arguments)

    monkeypatch.setattr(lengths, "encode_example", look)
    monkeypatch.setattr(progress.Progress, "update", lambda self, task, *, completed: done.append(completed))
    found, _ = lengths.token_lengths(dialogues, processor, 300)
    assert len(found) == len(seen) == 600
    assert "measuring dialogues" in seen[0]
    assert done == list(range(1, 601))
    assert max(map(len, terminal.shown().splitlines())) <= 80


def test_a_log_has_a_line_at_first_and_now_and_then_another(monkeypatch, caplog):
    caplog.set_level("INFO")
    now = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert [*progress.watched("abcd", "asking", 4)] == [*"abcd"]
    assert caplog.messages == ["asking", "asking: 2 of 4, 50 %", "asking: 4 of 4, 100 %"]
