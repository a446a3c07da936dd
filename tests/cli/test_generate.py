"""visualchat-generate: what it leaves for one model and for several, bad rows, and runs that were stopped."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from visualchat.cli import generate as command
from visualchat.cli.config import CONF
from visualchat.cli.generate import generate, model_folders
from visualchat.data.sources import Messages
from visualchat.generation.answer import Answer
from visualchat.generation.journal import Journal
from visualchat.tiny.scenes import draw, random_scene

ROUNDS = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory, make_model, processor):
    """A saved model."""
    folder = tmp_path_factory.mktemp("models") / "one" / "model"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def models(tmp_path):
    """Folders that pass for two saved models."""
    for name in ("one", "two"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
    return [tmp_path / name / "model" for name in ("one", "two")]


def parrot(folder, name, config, journal):
    """Stands for loading a model: one that says its name and what it was asked."""
    journal.require({f"model {name}": (folder / "config.json").read_text()})

    def answer(prompts):
        said = [f"{name}, {len(p.turns)}: {p.turns[-1].question}"[: config.max_new_tokens] for p in prompts]
        room = [ValueError("no room") if len(p.turns[-1].question) > 99 else None for p in prompts]
        return [full or Answer(text, "stop", ()) for full, text in zip(room, said, strict=True)]

    return lambda: answer


@pytest.fixture
def rows(tmp_path):
    """Five conversations about images, the second and fourth with an answer to their first question."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    found = []
    for number in range(5):
        draw(random_scene(number)).save(folder / f"images/{number}.png")
        content = [{"type": "image", "path": f"images/{number}.png"}, {"type": "text", "text": "What?"}]
        messages = [{"role": "user", "content": content}, *[{"role": "user", "content": "And?"}] * (ROUNDS - 1)]
        if number % 2:
            messages.insert(1, {"role": "assistant", "content": "A <b>cat</b>."})
        found.append({"id": f"c{number}", "messages": messages})
    return found


@pytest.fixture
def answered(tmp_path, models, rows, monkeypatch):
    """Gives a function that answers the rows in a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_load", parrot)

    def run(folder, *overrides, lines=None):
        Path("data/q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) if lines is None else lines)
        with initialize_config_dir(CONF, version_base="1.3"):
            named = [
                "input=data/q.jsonl",
                f"folder=[{','.join(map(str, models))}]",
                "max_new_tokens=60",
                "batch_size=1",
            ]
            config = compose("generate", [*named, *overrides])
        (tmp_path / folder).mkdir(exist_ok=True)
        generate(config, tmp_path / folder)
        return tmp_path / folder

    return run


def content(folder):
    """Every file of a run's folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_answers_of_two_models_side_by_side(answered, rows, capsys):
    folder = answered("run")
    lines = {
        name: [json.loads(line) for line in (folder / f"answers/{name}.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    }
    for name, found in lines.items():
        assert [line["id"] for line in found] == [f"q.jsonl:c{n}" for n in range(5)]
        assert [line["row"] for line in found] == [f"q.jsonl, line {n + 1} (id c{n})" for n in range(5)]
        assert [line["asked"] for line in found] == [[1, 2, 3], [2, 3], [1, 2, 3], [2, 3], [1, 2, 3]]
        assert {line["model"] for line in found} == {name}
        assert all((folder / image).is_file() for line in found for images in line["shown"] for image in images)
    assert lines["one"][0]["messages"] != lines["two"][0]["messages"]
    with (folder / "answers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["round"], row["images"]) for row in table[:5]] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "1"),
        ("2", "1"),
        ("3", "1"),
    ]
    assert [row["one"] for row in table] == [
        line["messages"][2 * k - 1]["content"] for line in lines["one"] for k in line["asked"]
    ]
    assert {row["two ended"] for row in table} <= {"stop", "length"}
    page = (folder / "answers.html").read_text()
    assert page.count("<section>") == 5
    assert page.count("<img ") == 5
    assert page.count("A &lt;b&gt;cat&lt;/b&gt;.") == 2
    assert "<b>" not in page
    HTMLParser().feed(page)
    said = capsys.readouterr().out
    assert "q.jsonl" not in said
    assert re.search(r"^one: 13 answers", said, re.MULTILINE)


def test_answers_are_data_again(answered, models):
    folder = answered("run")
    (folder.parent / "data/again.jsonl").write_bytes((folder / "answers/one.jsonl").read_bytes())
    dialogues = [*Messages(folder.parent / "data", ["again.jsonl"])]
    assert [len(dialogue.turns) for dialogue in dialogues] == [ROUNDS] * 5
    assert [len(dialogue.images) for dialogue in dialogues] == [1] * 5


def test_every_round_may_be_asked_and_given_answers_are_kept_beside(answered, models):
    folder = answered("run", "rounds=all", f"folder={models[0]}")
    lines = [json.loads(line) for line in (folder / "answers/one.jsonl").read_text().splitlines()]
    assert [line["asked"] for line in lines] == [[1, 2, 3]] * 5
    assert [line["given"][0] for line in lines] == ["", "A <b>cat</b>.", "", "A <b>cat</b>.", ""]
    open_only = answered("other", f"folder={models[0]}")
    first, other = (json.loads((f / "answers/one.jsonl").read_text().splitlines()[0]) for f in (folder, open_only))
    assert first["messages"] == other["messages"], "a conversation without answers is the same either way"


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_run_that_was_killed_leaves_the_same_files(answered, monkeypatch, killed_at):
    """At the start of a step, with half a line written behind what was whole; the data are two steps a model."""
    whole = content(answered("whole"))
    journal = "visualchat.generation.journal.Journal.append"
    append, steps = Journal.append, []

    def killed(self, texts):
        steps.append(1)
        if len(steps) == killed_at:
            for name in texts:
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.folder / name).open("a").write("half of a li")
            raise KeyboardInterrupt
        append(self, texts)

    with monkeypatch.context() as patched:
        patched.setattr(journal, killed)
        with pytest.raises(KeyboardInterrupt):
            answered("run")
    assert content(answered("run")) == whole
    assert content(answered("run")) == whole, "a finished run stays as it is"


def test_bad_rows_are_named_and_never_dropped_in_silence(answered, rows, capsys):
    good = [json.dumps(row) for row in rows]
    bad = '{"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "m"}]}'
    (damaged := Path("data/images/9.png")).write_bytes(b"no image")
    torn = good[0].replace("images/0.png", "images/9.png").replace("c0", "c9")
    lines = "\n".join([good[0], bad, "{broken", torn, *good[1:]])
    with pytest.raises(ValueError, match=r"2 of 8 rows are damaged(.|\n)*q.jsonl, line 2: no open question"):
        answered("run", lines=lines)
    with pytest.raises(ValueError, match=r"^q.jsonl, line 2 \(id c9\): .* cannot be read as an image.*on_error=skip"):
        answered("torn", lines="\n".join([good[0], torn]))
    capsys.readouterr()
    folder = answered("skipped", "on_error=skip", lines=lines)
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    places = ["q.jsonl, line 2", "q.jsonl, line 3", *["q.jsonl, line 4 (id c9)"] * 2]
    assert [line["row"] for line in skipped] == places
    assert [line["model"] for line in skipped] == [None, None, "one", "two"]
    assert len((folder / "answers/two.jsonl").read_text().splitlines()) == 5
    assert "4 rows were left out, the first: q.jsonl, line 2: no open question" in capsys.readouterr().out
    assert damaged.is_file()


def test_a_file_without_a_sound_row_is_an_error_whatever_is_skipped(answered):
    for lines in ("", "\n\n"):
        with pytest.raises(ValueError, match="there is no row"):
            answered("none", lines=lines)
    with pytest.raises(ValueError, match=r"no sound conversation; the first bad row: .*q.jsonl, line 1: broken JSON"):
        answered("bad", "on_error=skip", lines="{torn")


def test_files_of_other_programs(answered, rows):
    """A byte-order mark, Windows' line ends, one id twice, further columns, an image in a later round, odd words."""
    second = {"role": "user", "content": [{"type": "image", "path": "images/4.png"}, {"type": "text", "text": "New?"}]}
    rows[0]["messages"].append(second)
    rows[1] |= {"id": "c0", "score": 3, "tags": ["x"]}
    rows[2]["messages"][0]["content"][1]["text"] = "W\u00e4s\u2028 is \U0001f642 \x00?"
    text = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    folder = answered("run", "rounds=all", lines=text)
    lines = (folder / "answers/one.jsonl").read_text().split("\n")[:-1]
    found = [json.loads(line) for line in lines]
    assert [one["id"] for one in found] == ["q.jsonl:c0", "q.jsonl:c0#2", *(f"q.jsonl:c{n}" for n in (2, 3, 4))]
    assert [len(images) for images in found[0]["shown"]] == [1, 0, 0, 1]
    assert found[0]["asked"] == [1, 2, 3, 4]
    assert "W\u00e4s\u2028 is \U0001f642 \x00?" in found[2]["messages"][0]["content"][1]["text"]
    with (folder / "answers.csv").open(newline="", encoding="utf-8") as file:
        assert len([*csv.DictReader(line.replace("\0", "") for line in file)]) == sum(
            len(one["asked"]) for one in found
        )


def test_a_conversation_too_long_for_the_model_is_a_bad_row(answered, rows, models):
    rows[3]["messages"][-1] = {"role": "user", "content": "x" * 100}
    with pytest.raises(ValueError, match=r"q.jsonl, line 4 \(id c3\): round 3: no room; on_error=skip"):
        answered("run")
    folder = answered("skipped", "on_error=skip")
    assert "round 3: no room" in json.loads((folder / "skipped.jsonl").read_text().splitlines()[0])["reason"]
    assert len((folder / "answers/one.jsonl").read_text().splitlines()) == 4


MISTAKES = [
    (["rounds=some"], "rounds=some: expected open or all"),
    (["input=nowhere.jsonl"], "input=nowhere.jsonl: there is no such file"),
    (["root=data/images"], "input=data/q.jsonl must lie under root=data/images"),
    (["batch_size=0"], "batch_size=0: expected a whole number, at least 1"),
    (["max_new_tokens=many"], "max_new_tokens=many: expected a whole number, at least 1"),
    (["seed=1.5"], "seed=1.5: expected a whole number"),
    (["temperature=hot"], "temperature=hot: expected a number from 0"),
    (["top_p=2"], "top_p=2: expected a number above 0, at most 1, or null"),
    (["stop=END"], "stop=END: expected a list of texts, such as stop=['END']"),
    (["input=data"], "input=data: there is no such file"),
    (["folder=[]"], "names no model"),
    (["folder=nowhere"], "folder=nowhere: no saved model there"),
]


@pytest.mark.parametrize(("overrides", "complaint"), MISTAKES)
def test_mistakes_are_named(answered, overrides, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        answered("run", *overrides)


def test_other_settings_in_the_same_folder_are_refused(answered, models):
    answered("run")
    with pytest.raises(ValueError, match=r"run holds a run of other settings: max_new_tokens=7 \(was 60\)"):
        answered("run", "max_new_tokens=7")
    models[1].joinpath("config.json").write_text("another")
    journal = Path("run/journal.json")
    journal.write_text(journal.read_text().replace('"done": 4', '"done": 2'))
    with pytest.raises(ValueError, match="other settings: model two=another"):
        answered("run")


def test_models_are_called_by_their_folders(tmp_path):
    for name in ("a/x/model", "b/x/model", "c/light", "c/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    from omegaconf import OmegaConf

    def names(*folders):
        return [*model_folders(OmegaConf.create([str(tmp_path / folder) for folder in folders]))]

    assert names("a/x/model") == ["x"]
    assert names("a/x/model", "c/light") == ["x", "c"]
    assert names("a/x/model", "b/x/model") == ["a-x", "b-x"]
    assert names("c/light", "c/model") == ["c-light", "c-model"]
    with pytest.raises(ValueError, match=r"folder= names .*/a/x/model twice"):
        names("a/x/model", "c/../a/x/model")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, "full disk"])
def test_the_command_continues_where_it_was_stopped(tmp_path, saved, rows, how):
    """Typed as a person would; stopped once something is written, continued by the line that it prints or its own."""
    (tmp_path / "data/q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 24))
    line = [str(Path(sys.executable).parent / "visualchat-generate"), "input=data/q.jsonl", f"folder={saved}"]
    line += ["max_new_tokens=6", "batch_size=2", "hydra.run.dir=run"]
    whole = [*line[:-1], "hydra.run.dir=whole"]
    subprocess.run(whole, cwd=tmp_path, check=True, capture_output=True)
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    limited = ["bash", "-c", 'ulimit -f 12; exec "$@"', "", *line] if how == "full disk" else line  # KiB a file
    for _ in range(5):  # until the signal comes before the end
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        # a shell's background jobs, which tests may be, ignore Ctrl-C, and so would what they start
        heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        process = subprocess.Popen(limited, cwd=tmp_path, **streams, **heeding)
        if how != "full disk":
            while process.poll() is None and not (tmp_path / "run/journal.json").is_file():
                time.sleep(0.01)
            process.send_signal(how)
        said = process.communicate()[1]
        if process.returncode != 0:
            break
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, "full disk": 1}[how]
    assert how != "full disk" or re.match(
        r"the run's files could not be written: .* too large.*; make room first\n", said
    )
    written = (tmp_path / "run/answers/one.jsonl").read_text().count("\n")
    assert 0 < written < 24 * len(rows)
    again = line if how == signal.SIGKILL else said.partition("continue with: ")[2].split()
    assert "hydra.run.dir=run" in again
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(again, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert re.search(r"continuing: \d+ of 15 steps are there", done.stdout)
    for name in ("answers/one.jsonl", "answers.csv", "answers.html"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
