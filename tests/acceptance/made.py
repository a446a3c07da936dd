"""What documents expect a reader to have: pictures and rows of their own, the paper's corpora. Made of the tiny world.

Forty rows or so each, in the real file formats and under the names that the documents use.
"""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from visualchat.tiny import TinyDialogues
from visualchat.tiny.scenes import draw, random_scene

ROWS = 40
QUESTIONS = [(turn.question, str(turn.answer)) for turn in (d.turns[0] for d in TinyDialogues("train", ROWS))]
COCO = "coco/train2017"


def picture(path: Path, seed: int) -> str:
    """A drawn picture as a file; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(random_scene(seed)).save(path)
    return path.name


def encoded(seed: int) -> str:
    buffer = io.BytesIO()
    draw(random_scene(seed)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def messages(root: Path) -> list[dict[str, Any]]:
    """Rows in the messages format, a picture file each."""
    rows = []
    for number, (question, answer) in enumerate(QUESTIONS):
        image = f"pictures/{picture(root / f'pictures/{number:03d}.png', number)}"
        content = [{"type": "image", "path": image}, {"type": "text", "text": question}]
        rows.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]})
    return rows


def jsonl(path: Path) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in messages(path.parent)))


def table(path: Path) -> None:
    """A CSV of picture, question and answer."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        for number, (question, answer) in enumerate(QUESTIONS):
            picture(path.parent / f"pictures/{number:03d}.png", number)
            writer.writerow([f"pictures/{number:03d}.png", question, answer])


OWN: dict[str, Callable[[Path], None]] = {
    ".jsonl": jsonl,
    ".json": lambda path: write(path, messages(path.parent)),
    ".csv": table,
}
"""A file of a reader's own rows, by its ending."""


def conversations(path: Path) -> None:
    """JSON Lines of questions that wait for answers; every second has an answered round before."""
    rows = messages(path.parent)[:6]
    for row in rows[::2]:
        row["messages"].append({"role": "user", "content": "And now?"})
    for row in rows[1::2]:
        row["messages"].pop()
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def own_rows(root: Path, name: str) -> None:
    """The file `name` of somebody's own rows under the data root, and the pictures that it names."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    OWN[path.suffix](path)


def coco(root: Path, number: int) -> str:
    name = f"{number:012d}.jpg"
    if not (root / COCO / name).exists():
        (root / COCO).mkdir(parents=True, exist_ok=True)
        Image.Image.save(draw(random_scene(number)), root / COCO / name)
    return name


def llava(root: Path, file: str, first: int) -> None:
    rows = []
    for number, (question, answer) in enumerate(QUESTIONS, first):
        texts = [("human", f"<image>\n{question}"), ("gpt", answer)]
        talk = [{"from": who, "value": text} for who, text in texts]
        rows.append({"id": f"{number:012d}", "image": coco(root, number), "conversations": talk})
    write(root / "llava" / file, rows)


def mimic_it(root: Path, part: str, pictures: Callable[[int], list[str]]) -> None:
    """Instructions of a part; beside them its own pictures, unless those are COCO's."""
    rows = {
        f"{part}_INS_{number:06d}": {
            "instruction": question,
            "answer": answer,
            "image_ids": pictures(number),
            "rel_ins_ids": [],
        }
        for number, (question, answer) in enumerate(QUESTIONS)
    }
    write(root / f"MIMIC-IT/{part}_instructions.json", {"meta": {}, "data": rows})
    if part != "CGD":
        names = sorted({name for row in rows.values() for name in row["image_ids"]})
        write(root / f"MIMIC-IT/{part}.json", {name: encoded(seed) for seed, name in enumerate(names)})


def sparkles(root: Path, part: str) -> None:
    rows = []
    for number, (question, answer) in enumerate(QUESTIONS):
        picture(root / f"{part}/images/{number}.jpg", number)
        asked = {
            "role": "user",
            "content": f"{question} See IMAGE#{number}<Img><ImageHere></Img>.",
            "images": [{"image_id": number, "caption": "a drawing"}],
        }
        rows.append({"dialogue": [asked, {"role": "assistant", "content": answer}]})
    write(root / f"{part}/annotations/{part}.json", rows)


def corpora(root: Path) -> None:
    """The nine datasets of the paper's table 1."""
    llava(root, "detail_23k.json", 0)
    llava(root, "complex_reasoning_77k.json", ROWS)
    llava(root, "conversation_58k.json", 2 * ROWS)
    mimic_it(root, "CGD", lambda n: [f"CGD_IMG_{n:012d}", f"CGD_IMG_{n + 1:012d}"])
    mimic_it(root, "SD", lambda n: [f"SD_IMG_{n:05d}_1", f"SD_IMG_{n:05d}_2"])
    for part in ("SN", "TVC", "VST"):
        mimic_it(root, part, lambda n, part=part: [f"{part}_IMG_{n:04d}_{k}" for k in range(1 + n % 3)])
    for number in range(ROWS + 1):
        coco(root, number)
    for part in ("SparklesDialogueCC", "SparklesDialogueVG"):
        sparkles(root, part)
