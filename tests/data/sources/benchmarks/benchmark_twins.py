"""Small files in each benchmark's published form, with images drawn here, so that who sees them knows every answer.

An image is one shade of grey, and every question is about shades; `Twin.seen` answers by looking. Answers are spread so
that words alone are worth `Twin.chance`.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet
from corpora import Corpus, jpeg, shade_of

from visualchat.data.sources import Source, benchmarks
from visualchat.dialogue import Turn

TAG = "<Img><ImageHere></Img>"
LEVELS = (40, 130, 220)


@dataclass(frozen=True)
class Twin:
    """A benchmark's twin.

    Attributes:
        reader: The source.
        write: Fills the data root.
        seen: The answer to a round, by its images and those before it.
        chance: What the best guess from words alone is worth.
        questions: How many there are.
    """

    reader: Callable[[Any], Source]
    write: Callable[[Corpus], None]
    seen: Callable[[Turn, list[float]], str]
    chance: float
    questions: int


def column(shade: int) -> dict[str, Any]:
    return {"bytes": jpeg(shade, "PNG"), "path": f"{shade}.png"}


def parquet(corpus: Corpus, name: str, rows: list[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    corpus.write(name, buffer.getvalue())


def rotated(number: int) -> tuple[int, ...]:
    """The three shades, the brightest at place `number`."""
    dark, middle, bright = LEVELS
    shades = [dark, middle]
    shades.insert(number % 3, bright)
    return tuple(shades)


def brightest(turn: Turn, shades: list[float]) -> str:
    """The letter of the brightest image of the round's last three, or of "none" where all are dark."""
    *_, first, second, third = shades
    return "D" if max(first, second, third) < 100 else "ABC"[[first, second, third].index(max(first, second, third))]


def muirbench_row(number: int, **fields: Any) -> dict[str, Any]:
    """Six kinds of answers: the brightest of three, named in the question or shown as options; or none of them."""
    as_options = number % 2 == 1
    shades = (40, 40, 40) if number % 8 >= 6 else rotated(number // 2 % 4)
    answer = "D" if number % 8 >= 6 else "ABC"[number // 2 % 4]
    return {
        "idx": str(number),
        "task": "Image Retrieval" if as_options else "Ordering",
        "image_relation": "Complementary",
        "image_type": "Graphics",
        "question": "Which of these is bright?" if as_options else "<image> <image> <image>\nWhich of them is bright?",
        "options": ["<image>"] * 3 + ["None"] if as_options else ["first", "second", "third", "None"],
        "answer": answer,
        "image_list": [column(shade) for shade in shades],
        "counterpart_idx": str(number ^ 4) if number < 8 else None,
        **fields,
    }


def blink_row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "idx": f"val_Counting_{number}",
        "sub_task": "Counting",
        "question": "Which image is bright?",
        "image_1": column(rotated(number)[0]),
        "image_2": column(rotated(number)[1]),
        "image_3": column(rotated(number)[2]),
        "image_4": None,
        "choices": ["the first", "the second", "the third"],
        "answer": f"({'ABC'[number % 3]})",
        "prompt": "Three images are shown.\nWhich is bright?\n(A) the first\n(B) the second\n(C) the third",
        "explanation": "",
        **fields,
    }


def mantis_row(number: int, **fields: Any) -> dict[str, Any]:
    short = number % 2 == 1
    question = "What shade has <image>?" if short else "Which is bright: <image><image><image>?"
    shades = (LEVELS[number // 2 % 3],) if short else rotated(number // 2)
    return {
        "id": f"mantis_eval_{number}",
        "question_type": "short-answer" if short else "multi-choice",
        "question": question,
        "images": [column(shade) for shade in shades],
        "options": [] if short else ["(A) one", "(B) two", "(C) three"],
        "answer": NAMES[LEVELS[number // 2 % 3]] if short else "ABC"[number // 2 % 3],
        "data_source": "human",
        "category": "counting",
        **fields,
    }


NAMES = {40: "black", 130: "grey", 220: "white"}


def shade_name(shade: float) -> str:
    return NAMES[min(LEVELS, key=lambda level: abs(level - shade))]


def write_nlvr2(corpus: Corpus) -> None:
    rows = []
    for number in range(4):
        for place, shade in enumerate((40, 220) if number % 2 else (220, 40)):
            corpus.write(f"nlvr2/test1/test1-7-{number}-img{place}.png", jpeg(shade, "PNG"))
        row = {"sentence": "The left image is brighter than the right one.", "label": str(number % 2 == 0)}
        rows.append({**row, "identifier": f"test1-7-{number}-0", "left_url": "http://a", "validation": {"1": "True"}})
    corpus.lines("nlvr2/data/test1.json", rows)


def seed_row(number: int, **fields: Any) -> dict[str, Any]:
    interleaved = number % 2 == 1
    return {
        "question_id": f"{number}",
        "question_type_id": 23,
        "question": "<img><img><img> Which is bright?" if interleaved else "Which image is bright?",
        "choice_a": "The first", "choice_b": "The second", "choice_c": "The third", "choice_d": "None",
        "answer": "ABC"[number // 2 % 3],
        "data_id": [f"{shade}.png" for shade in rotated(number // 2)],
        "data_type": "Interleaved Image" if interleaved else "Multiple Images",
        "data_source": "cc3m" if interleaved else "SEED-Bench v2",
        "level": "L2", "subpart": "Multiple-Images", "version": "v2",
        **fields,
    }  # fmt: skip


def write_seed(corpus: Corpus, rows: list[Any] | None = None) -> None:
    for shade in LEVELS:
        for folder in ("SEED-Bench-2-image", "cc3m-image"):
            corpus.write(f"SEED-Bench-2/{folder}/{shade}.png", jpeg(shade, "PNG"))
    video = seed_row(90, data_type="Video", data_id="v.mp4")
    chosen = [*(seed_row(n) for n in range(6)), video] if rows is None else rows
    corpus.write("SEED-Bench-2/SEED-Bench_v2_level1_2_3.json", {"questions": chosen, "question_type": {"x": 23}})


def write_mirb(corpus: Corpus, rows: list[Any] | None = None) -> None:
    for shade in LEVELS:
        corpus.jpeg(f"MIRB/Images/{shade}.jpg", shade)
    files = {name: [f"Images/{shade}.jpg" for shade in rotated(n)] for n, name in enumerate("abc")}
    count = [{"questions": "Which number has the bright image?", "answers": n + 1, "images": files[name]}
             for n, name in enumerate(files)]  # fmt: skip
    text = "Which is bright?\n(A) the first (B) the second (C) the third"
    code = [{"questions": text, "answers": "ABC"[n], "images": files[name]} for n, name in enumerate(files)]
    corpus.write("MIRB/codeu.json", code)
    corpus.write("MIRB/count.json", count if rows is None else rows)


def mimic_rows(task: str) -> list[dict[str, Any]]:
    """Three rows about shades: how many are white, which there are, which all share, which only one has."""
    rows = []
    for number, shade in enumerate(LEVELS):
        other = LEVELS[(number + 1) % 3]
        shades = {"counting": [220] * (number + 1) + [40] * (3 - number), "listing": [shade, shade, other],
                  "common": [shade] * 3, "oddone": [other, other, shade]}[task]  # fmt: skip
        listed = ", ".join(sorted({NAMES[shade], NAMES[other]}))
        truth = {"counting": number + 1, "listing": listed}.get(task, NAMES[shade])
        rows.append({"idx" if task == "counting" else "id": number, "task": task, "question": f"What of {task}?",
                     "images": [column(shade) for shade in shades], "gt": str(truth)})  # fmt: skip
    return rows


def write_mimic(corpus: Corpus) -> None:
    for task in ("counting", "listing", "common", "oddone"):
        parquet(corpus, f"MIMIC/{task}/test-00000-of-00001.parquet", mimic_rows(task))


def mimic_seen(turn: Turn, shades: list[float]) -> str:
    names = [shade_name(shade) for shade in shades]
    if turn.kind == "counting":
        return ["none", "one", "two", "three"][names.count("white")]
    if turn.kind == "oddone":
        return min(names, key=names.count)
    return ", ".join(sorted(set(names)))


def mmdu_row(number: int, **fields: Any) -> dict[str, Any]:
    """Two images in the first round, one in the third."""
    shades = LEVELS[number % 3], LEVELS[(number + 1) % 3], LEVELS[(number + 2) % 3]
    spoken = [
        ("<ImageHere> and <ImageHere>\nWhat are they?", f"{NAMES[shades[0]]}, {NAMES[shades[1]]}"),
        ("Again, please.", f"{NAMES[shades[0]]}, {NAMES[shades[1]]}"),
        ("And <ImageHere>?", f"{NAMES[shades[0]]}, {NAMES[shades[1]]}, {NAMES[shades[2]]}"),
    ]
    told = [
        {"from": role, "value": words}
        for pair in spoken
        for role, words in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"id": f"{number}", "image": [f"./pics/{s}.jpg" for s in shades], "conversations": told, **fields}


def write_mmdu(corpus: Corpus, rows: Any = None) -> None:
    for shade in LEVELS:
        corpus.jpeg(f"MMDU/pics/{shade}.jpg", shade)
    chosen = {f"{n}": mmdu_row(n) for n in range(3)} if rows is None else rows
    corpus.write("MMDU/benchmark.json", chosen)


def all_names(turn: Turn, shades: list[float]) -> str:
    return ", ".join(shade_name(shade) for shade in shades)


def write_sparkles(corpus: Corpus) -> None:
    rows = []
    for number in range(3):
        ids = [10 * number + 1, 10 * number + 2]
        shades = LEVELS[number], LEVELS[(number + 1) % 3]
        for id, shade in zip(ids, shades, strict=True):
            corpus.jpeg(f"SparklesEval/images/{id}.jpg", shade)
        images = [{"image_id": id, "caption": "a shade"} for id in ids]
        names = NAMES[shades[0]], f"{NAMES[shades[0]]}, {NAMES[shades[1]]}"
        rows.append({"evaluation_id": number, "dialogue": [
            {"role": "user", "images": images[:1], "content": f"What is IMAGE#{ids[0]}{TAG}?"},
            {"role": "assistant", "content": names[0]},
            {"role": "user", "images": images[1:], "content": f"And beside IMAGE#{ids[1]}{TAG}?"},
            {"role": "assistant", "content": names[1]},
        ]})  # fmt: skip
    corpus.write("SparklesEval/annotations/sparkles_evaluation_sparkleseval_annotations.json", rows)


def vischain_text(number: int, **fields: Any) -> dict[str, Any]:
    """Two steps; each asks for the bright one of three images."""
    steps = [rotated(number), rotated(number + 1)]
    return {
        "initial_scene_description": "A dark room.",
        "questions": [
            {"original_id": str(n), "question": f"Step {n}: which do you take?", "task_description": "x",
             "choices": [{"image": f"{shade}.jpg", "correct": shade == 220} for shade in shades], "metadata": ""}
            for n, shades in enumerate(steps)
        ],
        **fields,
    }  # fmt: skip


def vischain_images(number: int, **fields: Any) -> dict[str, Any]:
    shades = rotated(number)
    options = [{"option": "ABC"[n], "image": f"{shade}.jpg"} for n, shade in enumerate(shades)]
    steps = [{"step": 1, "condition": "130.jpg", "options": options, "correct_option": "ABC"[shades.index(220)]}]
    return {"initial_condition": "40.jpg", "steps": steps, "metadata": "", **fields}


def write_vischain(corpus: Corpus, tasks: dict[str, Any] | None = None) -> None:
    if tasks is None:
        tasks = {f"CSTask/{n}": vischain_text(n) for n in range(3)} | {f"PI/{n}": vischain_images(n) for n in range(3)}
    for name, task in tasks.items():
        corpus.write(f"VisChainBench/{name}/task.json", task)
        for shade in LEVELS:
            corpus.jpeg(f"VisChainBench/{name}/{shade}.jpg", shade)


def write_pope(corpus: Corpus) -> None:
    corpus.jpeg("coco/val2014/COCO_val2014_000000000001.jpg", 40)
    corpus.jpeg("coco/val2014/COCO_val2014_000000000002.jpg", 220)
    for part in ("random", "popular", "adversarial"):
        rows = [{"question_id": n, "image": f"COCO_val2014_{n:012d}.jpg", "text": "Is it bright in the image?",
                 "label": ("no", "yes")[n - 1]} for n in (1, 2)]  # fmt: skip
        corpus.lines(f"POPE/coco_pope_{part}.json", rows)


def science_row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "question": "How bright is it?",
        "choices": ["black", "grey", "white"],
        "answer": number % 3,
        "hint": "Look.",
        "image": "image.png",
        "subject": "natural science",
        "split": "test",
        **fields,
    }


def write_science(corpus: Corpus, rows: dict[str, Any] | None = None) -> None:
    for number in range(9):
        corpus.write(f"ScienceQA/images/test/{number}/image.png", jpeg(LEVELS[number % 3], "PNG"))
    extra = {"7": science_row(0, image=None), "8": science_row(0, split="train")}
    chosen = {f"{n}": science_row(n) for n in range(6)} | extra if rows is None else rows
    corpus.write("ScienceQA/problems.json", chosen)


def write_vqa(corpus: Corpus, questions: Any = None, annotations: Any = None) -> None:
    for number, shade in enumerate(LEVELS):
        corpus.jpeg(f"coco/val2014/COCO_val2014_{number:012d}.jpg", shade)
    ids = range(3)
    asked = [{"question_id": 100 + n, "image_id": n, "question": "What shade?"} for n in ids]
    said = [[NAMES[LEVELS[n]]] * 7 + ["dull"] * 3 for n in ids]
    told = [{"question_id": 100 + n, "image_id": n, "answer_type": "other", "multiple_choice_answer": "x",
             "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(said[n])]}
            for n in ids]  # fmt: skip
    corpus.write("VQAv2/v2_OpenEnded_mscoco_val2014_questions.json",
                 {"questions": asked if questions is None else questions})  # fmt: skip
    corpus.write("VQAv2/v2_mscoco_val2014_annotations.json",
                 {"annotations": told if annotations is None else annotations})  # fmt: skip


def write_karpathy(corpus: Corpus, rows: Any = None) -> None:
    images = []
    for number, shade in enumerate(LEVELS):
        corpus.jpeg(f"coco/2014/COCO_val2014_{number}.jpg", shade)
        captions = [{"raw": f"{NAMES[shade]} "}, *({"raw": f"a {NAMES[shade]} thing {k}"} for k in range(4))]
        images.append({"filename": f"COCO_val2014_{number}.jpg", "filepath": "val2014", "split": "test",
                       "cocoid": number, "sentences": captions})  # fmt: skip
    images.append({**images[0], "split": "train"})
    corpus.write("coco_caption/dataset.json", {"images": images if rows is None else rows, "dataset": "coco"})


def mantis_seen(turn: Turn, shades: list[float]) -> str:
    return brightest(turn, shades) if turn.expected.options else shade_name(shades[-1])


def mirb_seen(turn: Turn, shades: list[float]) -> str:
    letter = brightest(turn, shades)
    return letter if turn.kind == "codeu" else str(1 + "ABC".index(letter))


def compared(turn: Turn, shades: list[float]) -> str:
    return "yes" if shades[0] > shades[1] else "no"


TWINS = {
    "muirbench": Twin(
        benchmarks.MuirBench,
        lambda corpus: parquet(
            corpus, "MUIRBENCH/data/test-00000-of-00001.parquet", [muirbench_row(n) for n in range(16)]
        ),
        brightest,
        1 / 4,
        16,
    ),
    "blink": Twin(
        benchmarks.Blink,
        lambda corpus: parquet(corpus, "BLINK/Counting/val-00000-of-00001.parquet", [blink_row(n) for n in range(6)]),
        brightest,
        1 / 3,
        6,
    ),
    "mantis_eval": Twin(
        benchmarks.MantisEval,
        lambda corpus: parquet(
            corpus, "Mantis-Eval/mantis_eval/test-00000-of-00001.parquet", [mantis_row(n) for n in range(12)]
        ),
        mantis_seen,
        1 / 3,
        12,
    ),
    "nlvr2": Twin(benchmarks.Nlvr2, write_nlvr2, compared, 1 / 2, 4),
    "seed_bench_2": Twin(benchmarks.SeedBench2, write_seed, brightest, 1 / 3, 6),
    "mirb": Twin(benchmarks.Mirb, write_mirb, mirb_seen, 1 / 3, 6),
    "mimic": Twin(benchmarks.Mimic, write_mimic, mimic_seen, 1 / 3, 12),
    "mmdu": Twin(benchmarks.Mmdu, write_mmdu, all_names, 1 / 3, 9),
    "sparkles_eval": Twin(
        lambda root: benchmarks.SparklesEval(root, style="ordinal"), write_sparkles, all_names, 1 / 3, 6
    ),
    "vischainbench": Twin(benchmarks.VisChainBench, write_vischain, brightest, 1 / 3, 9),
    "pope": Twin(benchmarks.Pope, write_pope, lambda turn, shades: "yes" if shades[-1] > 100 else "no", 1 / 2, 6),
    "scienceqa": Twin(
        benchmarks.ScienceQa,
        write_science,
        lambda turn, shades: "ABC"[["black", "grey", "white"].index(shade_name(shades[-1]))],
        1 / 3,
        6,
    ),
    "vqav2": Twin(benchmarks.VqaV2, write_vqa, all_names, 1 / 3, 3),
    "coco_karpathy": Twin(benchmarks.CocoKarpathy, write_karpathy, all_names, 1 / 3, 3),
}


def shades_so_far(dialogue, round: int) -> list[float]:
    """The shades of every image up to and with a round (from 0)."""
    return [shade_of(image) for turn in dialogue.turns[: round + 1] for image in turn.images]
