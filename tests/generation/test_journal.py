"""A run that was killed continues behind its last whole step; other settings and changed files are named."""

import json

import pytest

from visualchat.generation.journal import JOURNAL, Journal

SETTINGS = {"max_new_tokens": 4, "files": ["a"]}


def test_what_was_written_behind_the_last_step_is_cut_off(tmp_path):
    (tmp_path / "a").write_text("of a run that was killed in its first step")
    journal = Journal(tmp_path, SETTINGS)
    journal.append({"a": "one é\n"})
    journal.append({"a": "two\n", "b": "first\n"})
    (tmp_path / "a").open("a").write("half of a li")
    (tmp_path / "c").write_text("begun")
    again = Journal(tmp_path, SETTINGS)
    assert again.done == 2
    again.append({"a": "three\n", "c": "new\n"})
    assert (tmp_path / "a").read_text() == "one é\ntwo\nthree\n"
    assert (tmp_path / "b").read_text() == "first\n"
    assert (tmp_path / "c").read_text() == "new\n"
    assert Journal(tmp_path, SETTINGS).done == 3


def test_other_settings_are_refused_by_name(tmp_path):
    journal = Journal(tmp_path, SETTINGS)
    journal.require({"model": "abc"})
    journal.append({"a": "one\n"})
    with pytest.raises(ValueError, match=r"holds a run of other settings: max_new_tokens=5 \(was 4\)\ntype the same"):
        Journal(tmp_path, SETTINGS | {"max_new_tokens": 5})
    with pytest.raises(ValueError, match=r"model=abd \(was abc\)"):
        Journal(tmp_path, SETTINGS).require({"model": "abd"})
    Journal(tmp_path, SETTINGS).require({"model": "abc", "another": (1, 2)})


def test_a_file_that_was_shortened_and_a_damaged_journal_are_named(tmp_path):
    Journal(tmp_path, SETTINGS).append({"a": "one\n"})
    (tmp_path / "a").write_text("on")
    with pytest.raises(ValueError, match="a is shorter than it was written"):
        Journal(tmp_path, SETTINGS)
    (tmp_path / JOURNAL).write_text(json.dumps({"done": 1}))
    with pytest.raises(ValueError, match=f"{JOURNAL} is damaged"):
        Journal(tmp_path, SETTINGS)


def test_drafts_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "images").mkdir()
    kept = [tmp_path / "images" / name for name in ("a.png", ".hidden.png")]
    drafts = [tmp_path / "images" / ".a.png.123.0a1b2c3d", tmp_path / ".report.html.7.ffffffff"]
    for path in (*kept, *drafts):
        path.touch()
    Journal(tmp_path, {})
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept}
