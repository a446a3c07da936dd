"""Digests know every edited row, wherever the files lie, and dialogues know where their rows are."""

import json
from pathlib import Path

from PIL import Image

from visualchat.data.blend.compose import Join
from visualchat.data.blend.mixture import Blend
from visualchat.data.blend.origin import digest_of, place_of, rows_in
from visualchat.data.sources import Messages
from visualchat.dialogue import Dialogue, Turn
from visualchat.tiny import TinyDialogues


def blend(folder: Path, *answers: str, seed: int = 0, **settings) -> Blend:
    folder.mkdir(exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": answer}]}
        for n, answer in enumerate(answers)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Messages(folder, ["own.jsonl"], **settings)
    return Blend({"own": source}, {"all": Join("own", 2, 2)}, validation=0.3, seed=seed)


def test_a_digest_knows_rows_settings_and_the_split(tmp_path):
    answers = [f"A{n}" for n in range(12)]
    first = blend(tmp_path / "a", *answers)
    known = digest_of(first.train)
    assert known == digest_of(blend(tmp_path / "b", *answers).train)
    assert known != digest_of(first.validation)
    others = [
        blend(tmp_path / "c", *answers[:-1], "Edited"),
        blend(tmp_path / "d", *answers, "More"),
        blend(tmp_path / "e", *answers[::-1]),
        blend(tmp_path / "f", *answers, seed=1),
        blend(tmp_path / "g", *answers, images_first=True),
    ]
    assert len({known, *(digest_of(other.train) for other in others)}) == len(others) + 1


def test_a_digest_of_a_plain_list_knows_words_and_pictures():
    def dialogue(colour: str = "red", answer: str = "A") -> Dialogue:
        return Dialogue((Turn.ask("Q", [Image.new("RGB", (4, 4), colour)], answer),))

    digests = [digest_of([one]) for one in (dialogue(), dialogue(), dialogue("blue"), dialogue(answer="B"))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    damaged = [Dialogue((Turn.ask("Q", [Path("gone.png")], "A"),))]
    assert digest_of(damaged) == digest_of(damaged)


def test_drawn_dialogues_are_known_by_what_they_are_drawn_from():
    assert digest_of(TinyDialogues("train", 9)) == digest_of(TinyDialogues("train", 9))
    assert digest_of(TinyDialogues("train", 9)) != digest_of(TinyDialogues("train", 9, seed=1))


def test_a_joined_dialogue_knows_its_rows(tmp_path):
    train = blend(tmp_path, *(f"A{n}" for n in range(12))).train
    dialogue = train[0]
    numbers = [number for _, number in rows_in(train, 0)]
    assert [int(turn.answer[1:]) for turn in dialogue.turns] == numbers
    assert place_of(train, 0) == " + ".join(f"own.jsonl, line {number + 1}" for number in numbers)
    assert (place_of([dialogue], 0), rows_in([dialogue], 0)) == ("dialogue 0", ())
