"""The data command: what it finds, measures, shows and converts, and how it is called."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

import forked
from visualchat.cli import data
from visualchat.cli.command import overrides
from visualchat.cli.config import CONF
from visualchat.data.inspection import check
from visualchat.data.inspection.survey import survey
from visualchat.data.sources import Messages
from visualchat.tiny import TinyDialogues


def config(*overrides: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("data_tool", ["action=check", "data.train.size=6", "data.validation.size=3", *overrides])


def own(folder, *rows) -> list[str]:
    """The overrides that put a file of these rows in the place of the training dialogues."""
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    (folder / "rows.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    source = f"{{_target_: visualchat.data.sources.Messages, root: '{folder}', files: [rows.jsonl]}}"
    return ["~data.train", f"+data.train={source}"]


def row(answer: str = "Red.", path: str = "red.png", **fields) -> dict:
    question = [{"type": "image", "path": path}, {"type": "text", "text": "What colour?"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **fields}


def user_turn(text: str) -> dict:
    return {"role": "user", "content": text}


def composed(*overrides: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("data_tool", ["action=check", "data.validation.size=3", *overrides])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["check"], ["action=check"]),
        (["show", "12", "part=validation"], ["action=show", "number=12", "part=validation"]),
        (["show", "data=tiny"], ["action=show", "data=tiny"]),
        (["--help"], ["--help"]),
        (["action=stats"], ["action=stats"]),
        ([], []),
    ],
)
def test_the_first_word_is_the_action(typed, meant):
    assert overrides(typed) == meant


def test_check_adds_up(tmp_path, capsys):
    assert data.check(config(), tmp_path) == 0
    left = json.loads((tmp_path / "check.json").read_text())
    train = left["totals"]["train"]["TinyDialogues"]
    expected = list(TinyDialogues("train", 6))
    assert train["rows"] == 6
    assert train["turns"] == sum(len(dialogue.turns) for dialogue in expected)
    assert train["images"] == sum(len(dialogue.images) for dialogue in expected)
    assert (train["bad"], train["cut"], left["bad"]) == (0, 0, [])
    said = capsys.readouterr().out
    assert "every row is sound" in said
    assert "validation" in said


@pytest.mark.parametrize("workers", [0, 2])
def test_check_names_every_bad_row(tmp_path, capsys, workers):
    """Damaged images are rows like others, named by their lines."""
    (tmp_path / "torn.png").write_bytes(b"no picture")
    torn = row(path="torn.png", id="\x1b[31m")
    rows = [row(), '{"messages": [', row(answer=""), row(path="gone.png"), torn, row(), row()]
    bad = data.check(composed(*own(tmp_path, *rows), f"num_workers={workers}"), tmp_path)
    left = json.loads((tmp_path / "check.json").read_text())
    assert bad == len(left["bad"]) == 4
    assert [(found["row"], found["reason"]) for found in left["bad"]] == [
        ("rows.jsonl, line 2", "broken JSON"),
        ("rows.jsonl, line 3", "empty answer"),
        ("rows.jsonl, line 4", "missing image file"),
        ("rows.jsonl, line 5 (id \\x1b[31m)", "damaged image"),
    ]
    assert "image 1 of 1: image file" in left["bad"][3]["detail"]
    rejected = {"broken JSON": 1, "empty answer": 1, "missing image file": 1, "damaged image": 1}
    notes = {"rows whose id occurred before": 2}
    assert left["rows"] == {
        "train": {"rows": 7, "used": 3, "dialogues": 3, "left out": {}, "rejected": rejected, "notes": notes}
    }
    assert left["complete"]
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    said = " ".join(printed.split())
    assert "4 bad rows" in said
    assert "messages 7 3 0 4 3" in said
    assert "messages, rejected: 1 damaged image" in said
    assert "messages, noted: 2 rows whose id occurred before" in said
    assert "messages, rows.jsonl, line 5 (id" in said


def test_an_interrupted_check_keeps_what_it_found(tmp_path, capsys, monkeypatch):
    def looks(*args, **settings):
        yield from list(survey(*args, **settings))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "survey", looks)
    with pytest.raises(SystemExit, match="130"):
        data.check(composed(*own(tmp_path, row(), row(answer=""), row())), tmp_path)
    left = json.loads((tmp_path / "check.json").read_text())
    assert (left["complete"], len(left["bad"]), left["rows"]["train"]["rows"]) == (False, 1, 3)
    assert "interrupted" in capsys.readouterr().out


def test_a_corpus_of_ones_own_and_its_report(tmp_path, capsys):
    own(tmp_path, *(row(id=str(n)) for n in range(20)), row(answer="", id="empty"))
    place = [f"source.root={tmp_path}", "source.files=[rows.jsonl]", "num_workers=0"]
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = compose("data_tool", ["action=check", "data=own", "data/source=messages", *place])
    assert data.check(settings, tmp_path) == 1
    left = json.loads((tmp_path / "check.json").read_text())
    assert left["totals"]["train"]["own"]["rows"] + left["totals"]["validation"]["own"]["rows"] == 20
    assert [found["reason"] for found in left["bad"]] == ["empty answer"]
    said = capsys.readouterr().out.split()
    start = said.index("messages")
    assert said[start + 1 : start + 6] == ["21", "20", "0", "1", "20"]


def test_check_counts_what_is_cut(tmp_path):
    assert data.check(config("data.max_length=60", "part=train"), tmp_path) > 0
    (sums,) = json.loads((tmp_path / "check.json").read_text())["totals"]["train"].values()
    assert sums["cut"] > 0
    assert sums["tokens"] <= 60 * sums["rows"]


def test_stats_leave_figures_and_pictures(tmp_path, capsys):
    data.stats(config("data.max_length=400"), tmp_path)
    left = json.loads((tmp_path / "stats.json").read_text())
    assert left["train"]["dialogues"] == 6
    assert left["validation"]["images in a dialogue"]["min"] >= 1
    assert 0.3 < left["train"]["real tokens in packed rows"] <= 1.0
    for name in ("train", "validation"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500
    assert "supervised" in capsys.readouterr().out


def test_show_marks_what_is_supervised(tmp_path, capsys):
    dialogue = TinyDialogues("train", 6)[2]
    data.show(config("number=2"), tmp_path)
    page = (tmp_path / "dialogue-2.html").read_text()
    assert page.count("<img ") == len(dialogue.images)
    assert page.count("<span class='answer'>") == len(dialogue.turns)
    for turn in dialogue.turns:
        assert f"<span class='answer'>{turn.answer}" in page
    said = capsys.readouterr().out
    assert dialogue.id in said
    assert "▀" in said


def test_show_marks_what_is_beyond_the_limit(tmp_path):
    """The limit is the length of the first turn."""
    turns = [user_turn("One?"), {"role": "assistant", "content": "Yes."}] * 2
    data.show(composed(*own(tmp_path, {"messages": turns}), "data.max_length=25"), tmp_path)
    page = (tmp_path / "dialogue-0.html").read_text()
    assert page.count("<span class='answer'>") == page.count("<span class='answer cut'>") == 1


def test_show_scales_a_photo_and_passes_over_damaged_rows(tmp_path):
    settings = composed(*own(tmp_path, row(answer=""), row(id="sound")), "number=0")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "red.png")
    data.show(settings, tmp_path)
    assert "sound" in (tmp_path / "dialogue-0.html").read_text()
    assert (tmp_path / "dialogue-0.html").stat().st_size < 1_500_000


def test_show_of_no_dialogue_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="train holds dialogues 0 to 5, asked for 6"):
        data.show(config("number=6"), tmp_path)


def test_a_page_shows_text_as_text(tmp_path):
    fields = row("<b>Red</b> & <img src=x>")
    data.show(composed(*own(tmp_path, fields)), tmp_path)
    page = (tmp_path / "dialogue-0.html").read_text()
    assert "&lt;b&gt;Red&lt;/b&gt; &amp; &lt;img src=x&gt;" in page


def test_converted_shards_are_the_same_dialogues(tmp_path):
    fields = row(id="a"), row("Blue.", id="b"), row("Green.", id="c")
    settings = composed(*own(tmp_path, *fields), "shard_rows=2")
    data.convert(settings, tmp_path / "run")
    shards = sorted(path.name for path in (tmp_path / "run" / "train").iterdir())
    assert shards == ["shard-00000.parquet", "shard-00001.parquet"]
    again = Messages(tmp_path / "run" / "train", shards)
    wanted = Messages(tmp_path, ["rows.jsonl"])
    assert len(again) == 3
    for found, expected in zip(again, wanted, strict=True):
        assert [(turn.question, turn.answer) for turn in found.turns] == [
            (turn.question, turn.answer) for turn in expected.turns
        ]
        assert found.images == tuple(image.read_bytes() for image in expected.images)
    with pytest.raises(ValueError, match="holds 2 shards already"):
        data.convert(settings, tmp_path / "run")


def test_prepare(tmp_path, capsys):
    data.prepare(config())
    assert "nothing to prepare" in capsys.readouterr().out
    data.prepare(composed(*own(tmp_path, row())))
    assert "messages" in capsys.readouterr().out


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown part=test, expected one of train, validation"):
        data.check(config("part=test"), tmp_path)


def test_the_exit_code_tells(tmp_path):
    sizes = ["data.validation.size=2", *own(tmp_path, row(), row(path="gone.png"))]
    done = forked.run(tmp_path, "data", "check", *sizes)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gone.png" in done.stdout
    (tmp_path / "rows.jsonl").write_text("\n")
    done = forked.run(tmp_path, "data", "check", *sizes)
    assert done.returncode != 0
    assert "messages: there is no row; files=['rows.jsonl']" in done.stderr
    done = forked.run(tmp_path, "data", "check", "data.validation.size=2", "data.train.size=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("outputs/data/*/*/check.json"))
    done = forked.run(tmp_path, "data", "chekc")
    assert done.returncode == 2
    assert "did you mean check?\nexpected one of check, stats, references, show, convert, prepare" in done.stderr


def test_bad_rows_are_named_also_where_too_few_are_sound(tmp_path):
    """The reason why nothing can be split is not the whole story."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    (tmp_path / "mine.csv").write_text("image,question,answer\nred.png,What?,Red.\ngone.png,What?,Red.\n")
    table = ["data=own", "data/source=table", "source.root=.", "source.files=mine.csv"]
    done = forked.run(tmp_path, "data", "check", *table)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "table, mine.csv, line 3: missing image file" in done.stdout
    assert " ".join(done.stdout.split()).count("table 2 1 0 1 1") == 1
    assert "validation holds no dialogue: the source has 1, split by data.validation=0.1" in done.stderr
