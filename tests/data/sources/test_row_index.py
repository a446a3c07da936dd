"""A large corpus is read once: later starts find the same rows in its index, and a change of anything reads anew."""

import os
import pickle
import shutil

import pytest
from test_llava import COCO, DAMAGED, DIALOGUE, GOOD, row

from visualchat.data.sources import Llava, base, row_index
from visualchat.data.sources.rows import Reason

HOUR = 3600 * 10**9


@pytest.fixture
def large(monkeypatch):
    """Every corpus counts as large."""
    monkeypatch.setattr(base, "_LARGE", 0)


@pytest.fixture
def reads(monkeypatch):
    """How often rows were read."""
    found = []
    scan = Llava._scan
    monkeypatch.setattr(Llava, "_scan", lambda self, tally: (found.append(self), scan(self, tally))[1])
    return found


def age(root) -> None:
    """Let everything under a folder be an hour older than it is."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            changed = path.stat().st_mtime_ns - HOUR
            os.utime(path, ns=(changed, changed))


def source(corpus, **options) -> Llava:
    return Llava(corpus.root, "x", [DIALOGUE], on_error="skip", **options)


@pytest.fixture
def filled(corpus):
    for number in (1, 2):
        corpus.jpeg(f"{COCO}/{number:012d}.jpg", 40 * number)
    odd = row("ü\ud800", "<image>\nÜber?", "Ja ☃.", image="000000000002.jpg")
    corpus.write(
        DIALOGUE, [GOOD, row("bad", "Q", " "), GOOD, odd, row("gone", "Q", "A"), row("t", "Q", "A", image=None)]
    )
    age(corpus.root)
    return corpus


def told(found: Llava):
    return list(found.entries), [str(error) for error in found.errors], found.report(), found.digest(), list(found)


def test_a_second_start_finds_the_same_without_reading(filled, large, reads):
    first, second = source(filled), source(filled)
    assert told(first) == told(second)
    assert reads == [first]
    assert (len(first), len(first.errors)) == (4, 2)
    assert told(pickle.loads(pickle.dumps(second))) == told(first)
    shutil.rmtree(filled.root / row_index.FOLDER)
    assert told(source(filled)) == told(first)


CHANGES = {
    "the rows": lambda corpus: corpus.write(DIALOGUE, [GOOD, GOOD]),
    "an image that is no more": lambda corpus: (corpus.root / COCO / "000000000002.jpg").unlink(),
    "an image that is there now": lambda corpus: corpus.jpeg(f"{COCO}/gone.jpg", 9),
    "a cut index": lambda corpus: [
        path.write_bytes(path.read_bytes()[:-9]) for path in (corpus.root / row_index.FOLDER).glob("*.index")
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(filled, large, reads, monkeypatch, change):
    source(filled).report()
    CHANGES[change](filled)
    found = told(source(filled))
    assert len(reads) == 2
    monkeypatch.setattr(base, "_LARGE", 10**9)
    assert found == told(source(filled))


def test_other_settings_and_other_code_read_anew(filled, large, reads, monkeypatch):
    source(filled).report()
    source(filled, images_first=False).report()
    assert len(reads) == 2
    monkeypatch.setattr(row_index, "_code", lambda: "changed")
    source(filled).report()
    assert len(reads) == 3


def test_what_changed_just_now_is_not_kept(filled, large, reads):
    """A second change within the clock's tick would not be seen."""
    filled.write(DIALOGUE, [GOOD])
    for _ in range(2):
        source(filled).report()
    assert len(reads) == 2


def test_a_root_that_cannot_be_written(filled, large, reads, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(row_index.os, "access", lambda path, mode: False)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for _ in range(2):
        assert len(source(filled)) == 4
    assert len(reads) == 1
    assert list((cache / "visualchat").glob("*.index"))
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert len(source(filled)) == 4


@pytest.mark.parametrize("case", DAMAGED)
def test_a_glance_tells_what_the_whole_reading_tells(case, filled, monkeypatch):
    """The quick way may only accept what the slow way accepts, with the same images."""
    more = [
        row("a", "<image><image>Q", "A", image="000000000001.jpg"),
        row("b", "Q", "A", "<image>R", "B", image="000000000001.jpg"),
        row("c", "<image>", "A", image="000000000001.jpg"),
        row("d", "Q<image>", "A", image=f"{COCO}/000000000002.jpg"),
    ]
    filled.write(DIALOGUE, [DAMAGED[case][0], GOOD, *more])
    quick = told(source(filled))
    monkeypatch.setattr(Llava, "_plain_images", lambda self, row: None)
    assert quick == told(source(filled))
    assert Reason.PLACEHOLDERS in quick[2].rejected
