"""What the data side costs: dialogues and images a second through the loader, packing, and peak memory.

    python benchmarks/data.py                        makes about 1.2 GB of corpora in a temporary folder; minutes
    python benchmarks/data.py --gigabytes 0.05 --dialogues 64 --rows 50000     a small run
    python benchmarks/data.py --only-start         the plain loop and the start with many rows; other figures stay

Each figure is taken in a process of its own. Writes benchmarks/results/data-cpu.json and prints a table.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from data_report import table
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "data-cpu.json"
WORDS = (
    *("the", "a", "red", "blue", "green", "large", "small", "left", "right", "above", "below"),
    *("of", "and", "is", "picture", "circle", "square", "shows", "beside", "two"),
)
MAX_LENGTH, IMAGE_TOKENS = 4096, 256

# Table 1 of arXiv 2309.14327: dialogues of each set after grouping. Beside it our assumptions on a dialogue, from the
# form of each corpus: its images, and its words (mean).
PAPER = {
    "llava": (49_924, (1, 2, 3), 330),
    "llava_dial": (37_818, (1, 2), 420),
    "cgd": (70_940, (2,), 90),
    "sd": (8_006, (2,), 160),
    "sn": (487, (4, 5, 6, 7, 8), 200),
    "vst": (115, (5, 6, 7, 8), 150),
    "blend": (48_869, (2, 3), 520),
    "sparkles": (6_520, (3, 4), 380),
}


def text(rng: random.Random, words: int) -> str:
    """So many words."""
    return " ".join(rng.choices(WORDS, k=words))


def make_llava(folder: Path, count: int) -> None:
    """`count` rows of LLaVA's form, each with a JPEG of 640 x 480."""
    images = folder / "coco" / "train2017"
    images.mkdir(parents=True)
    rng, rows = random.Random(0), []
    pixels = np.random.default_rng(0)
    for n in range(count):
        small = Image.fromarray(pixels.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(images / f"{n:012}.jpg", quality=90)
        said = [
            {"from": "human", "value": f"<image>\n{text(rng, 12)}?"},
            {"from": "gpt", "value": text(rng, rng.randint(60, 240))},
        ]
        rows.append({"id": str(n), "image": f"{n:012}.jpg", "conversations": said})
    (folder / "llava").mkdir()
    (folder / "llava" / "rows.json").write_text(json.dumps(rows))


def make_mimic(folder: Path, size: int) -> int:
    """MIMIC-IT's SD with an image file of at least `size` bytes of 224 x 224 PNG pictures; returns its dialogues."""
    home = folder / "MIMIC-IT"
    home.mkdir(parents=True)
    rng, pixels, rows, count = random.Random(1), np.random.default_rng(1), {}, 0
    with (home / "SD.json").open("w") as stream:
        stream.write("{")
        while stream.tell() < size or count < 4:
            for side in (1, 2):
                buffer = io.BytesIO()
                noise = pixels.integers(0, 256, (224, 224, 3), dtype=np.uint8)
                Image.fromarray(noise).save(buffer, "PNG", compress_level=1)
                separator = ", " if count or side == 2 else ""
                stream.write(f'{separator}"SD_IMG_{count:05}_{side}": "{base64.b64encode(buffer.getvalue()).decode()}"')
            rows[f"SD_INS_{count:05}"] = {
                "instruction": text(rng, 12) + "?",
                "answer": text(rng, rng.randint(20, 120)),
                "image_ids": [f"SD_IMG_{count:05}_1", f"SD_IMG_{count:05}_2"],
                "rel_ins_ids": [],
            }
            count += 1
        stream.write("}")
    (home / "SD_instructions.json").write_text(json.dumps({"meta": {}, "data": rows}))
    return count


def processor():
    """The tiny world's tokenizer and CLIP's preprocessing at 224 pixels; an image is 256 tokens as in the paper."""
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from visualchat.model import VisualChatProcessor
    from visualchat.tiny import backbone

    tokenizer = AutoTokenizer.from_pretrained(backbone("language_mixed"))
    return VisualChatProcessor(CLIPImageProcessorPil(), tokenizer, image_seq_length=IMAGE_TOKENS)


def peak_mb() -> dict[str, float]:
    """Peak resident memory of this process and of its largest child so far, in MB (10^6 bytes)."""
    scale = 1024 if platform.system() == "Linux" else 1
    who = {"process": resource.RUSAGE_SELF, "largest worker": resource.RUSAGE_CHILDREN}
    return {name: round(resource.getrusage(of).ru_maxrss * scale / 1e6, 1) for name, of in who.items()}


def source(corpus: str, folder: Path):
    """The reader of a corpus."""
    from visualchat.data.sources import Llava, MimicIt

    return MimicIt(folder, "SD") if corpus == "mimic" else Llava(folder, files=["llava/rows.json"])


def measure_index(corpus: str, folder: Path, **_: int) -> dict:
    """Read and index a corpus for the first time."""
    started = time.perf_counter()
    report = source(corpus, folder).prepare()
    return {"seconds": round(time.perf_counter() - started, 2), "dialogues": report.dialogues, "peak MB": peak_mb()}


class Some:
    """The first dialogues of a source."""

    def __init__(self, whole, count: int) -> None:
        self.whole, self.count = whole, min(count, len(whole))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.whole[index]


def measure_loader(corpus: str, folder: Path, workers: int, dialogues: int) -> dict:
    """An epoch through the packed loader, planning apart, after some batches of warming up."""
    import torch

    from visualchat.data.datamodule import VisualChatDataModule

    torch.set_num_threads(1)
    some = Some(source(corpus, folder), dialogues)
    data = VisualChatDataModule(
        processor(), some, some, batch_size=1, max_length=MAX_LENGTH, num_workers=workers, packing=True
    )
    started = time.perf_counter()
    plan = data.pack()
    planned = time.perf_counter()
    found = images = 0
    begun = planned
    for number, batch in enumerate(data.train_dataloader()):
        if number == 2 * max(workers, 1) - 1:  # the workers are up
            begun, found, images = time.perf_counter(), 0, 0
            continue
        found += int(batch["segment_ids"].max(1).values.add(1).sum())
        images += len(dict(batch).get("image_index", batch["pixel_values"]))
    seconds = time.perf_counter() - begun
    assert found, "too few dialogues to measure: ask for more"
    return {
        "dialogues": found,
        "dialogues/s": round(found / seconds, 1),
        "images/s": round(images / seconds, 1),
        "planning, dialogues/s": round(len(some) / (planned - started), 1),
        "real tokens": round(plan.efficiency, 4),
        "peak MB": peak_mb(),
    }


def measure_paired(corpus: str, folder: Path, dialogues: int) -> dict:
    """The loader beside a plain loop over the same batches, in turn: PIL, torch, and the tokenizer once a dialogue.

    In CPU time, which other processes disturb least.
    """
    import torch

    from visualchat.data.batching.collate import BatchMaker, Collator
    from visualchat.data.batching.sampler import BatchSpec
    from visualchat.dialogue.template import TextSegment

    torch.set_num_threads(1)
    prepare = processor()
    some = Some(source(corpus, folder), dialogues)
    texts, names = [], []
    for index in range(len(some)):
        texts.append("".join(part.text for part in prepare.render(some[index]) if isinstance(part, TextSegment)))
        names.append([str(image) for image in some[index].images])
    mean, std = (
        torch.tensor(list(values)).view(3, 1, 1)
        for values in (prepare.image_processor.image_mean, prepare.image_processor.image_std)
    )

    def picture(name: str) -> torch.Tensor:
        with Image.open(name) as opened:
            image = opened.convert("RGB")
        side = 224 / min(image.size)
        image = image.resize((round(image.width * side), round(image.height * side)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
        return (pixels.float() / 255 - mean) / std

    def plain(rows: range) -> None:
        ids = [torch.tensor(prepare.tokenizer(texts[row])["input_ids"]) for row in rows]
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        torch.stack([picture(name) for row in rows for name in names[row]])

    maker = BatchMaker(some, Collator(prepare, MAX_LENGTH))
    seconds = {"plain": [], "ours": []}
    for start in range(0, len(some) - 3, 4):
        rows = range(start, start + 4)
        begun = time.process_time()
        plain(rows)
        between = time.process_time()
        maker[BatchSpec(tuple((row,) for row in rows))]
        if start:  # the first of each warms up
            seconds["plain"].append(between - begun)
            seconds["ours"].append(time.process_time() - between)
    ours, loop = (float(np.sum(seconds[name])) for name in ("ours", "plain"))
    ratios = np.array(seconds["plain"]) / np.array(seconds["ours"])
    return {
        "batches of 4": len(ratios),
        "plain, dialogues a CPU second": round(4 * len(ratios) / loop, 1),
        "ours, dialogues a CPU second": round(4 * len(ratios) / ours, 1),
        "ours / plain": round(loop / ours, 3),
        "median over batches": round(float(np.median(ratios)), 3),
    }


def make_rows(folder: Path, count: int) -> None:
    """`count` LLaVA rows over the pictures that are there."""
    names = sorted(path.name for path in (folder / "coco" / "train2017").iterdir())
    rng = random.Random(3)
    with (folder / "llava" / "many.json").open("w") as stream:
        for n in range(count):
            said = [
                {"from": "human", "value": f"<image>\n{text(rng, 12)}?"},
                {"from": "gpt", "value": text(rng, 60)},
            ]
            row = {"id": f"{n:09}", "image": names[n % len(names)], "conversations": said}
            stream.write(("[" if not n else ", ") + json.dumps(row))
        stream.write("]")
    for path in (folder / "llava" / "many.json", folder / "coco" / "train2017"):
        os.utime(path, (time.time() - 60, time.time() - 60))  # what changed just now is not kept in an index


def measure_start(folder: Path, **_: int) -> dict:
    """CPU seconds from many rows on disk to the first batch, imports apart."""
    from visualchat.data.blend.compose import Join
    from visualchat.data.blend.mixture import Blend
    from visualchat.data.datamodule import VisualChatDataModule
    from visualchat.data.sources import Llava

    prepare, begun = processor(), time.process_time()
    blend = Blend({"own": Llava(folder, files=["llava/many.json"])}, {"own": Join("own")}, validation=0.01)
    data = VisualChatDataModule.from_blend(prepare, blend, batch_size=4, max_length=MAX_LENGTH)
    next(iter(data.train_dataloader()))
    return {"rows": len(blend.sources["own"]), "CPU s": round(time.process_time() - begun, 2), "peak MB": peak_mb()}


def measure_packing(**_: object) -> dict:
    """Plan the paper's whole blend by lengths."""
    from visualchat.data.batching.packing import Packing

    rng, lengths = random.Random(2), []
    for count, images, words in PAPER.values():
        for _n in range(count):
            shown = rng.choice(images)
            said = min(1500, 30 + int(rng.gammavariate(3, words / 3)))
            lengths.append(min(MAX_LENGTH, shown * (IMAGE_TOKENS + 8) + said * 4 // 3))
    started = time.perf_counter()
    packing = Packing(dict(enumerate(lengths)), MAX_LENGTH)
    rows = len(packing)
    planned = time.perf_counter()
    packing.rows(1)
    return {
        "dialogues": len(lengths),
        "tokens a dialogue": round(sum(lengths) / len(lengths), 1),
        "rows": rows,
        "real tokens": round(packing.efficiency, 5),
        "seconds to plan": round(planned - started, 2),
        "seconds an epoch": round(time.perf_counter() - planned, 2),
    }


MEASURES = {
    "index": measure_index,
    "loader": measure_loader,
    "packing": measure_packing,
    "paired": measure_paired,
    "start": measure_start,
}


def in_a_process(name: str, **arguments: object) -> dict:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, "--arguments", json.dumps(arguments, default=str)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_newest(dialogues: int, rows: int) -> dict:
    """The loader beside a plain loop, and the start with many rows, first and later."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_llava(folder, dialogues)
        make_rows(folder, rows)
        settings = {"corpus": "llava", "folder": folder, "dialogues": dialogues}
        return {
            "beside a plain loop": {**in_a_process("paired", **settings), "load": round(os.getloadavg()[0], 1)},
            "many rows, first start": in_a_process("start", folder=folder),
            "many rows, later start": in_a_process("start", folder=folder),
        }


def run(gigabytes: float, dialogues: int) -> dict:
    """All measurements of loader, index and packing."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_llava(folder, dialogues)
        count = make_mimic(folder, int(gigabytes * 1e9))
        size = (folder / "MIMIC-IT" / "SD.json").stat().st_size
        found = {
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "pillow")},
            },
            "mimic file, bytes": size,
            "mimic file, pictures": 2 * count,
            "packing": in_a_process("packing"),
            "index": in_a_process("index", corpus="mimic", folder=folder),
            "loader": {},
        }
        for corpus in ("llava", "mimic"):
            for workers in (0, 1, 2):
                print(f"{corpus}, {workers} workers", file=sys.stderr)
                settings = {"folder": folder, "workers": workers, "dialogues": dialogues}
                found["loader"][f"{corpus}, {workers} workers"] = in_a_process("loader", corpus=corpus, **settings)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.1, help="size of the MIMIC-IT image file")
    parser.add_argument("--dialogues", type=int, default=600, help="dialogues that go through the loader")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of a large corpus")
    parser.add_argument("--only-start", action="store_true", help="only the plain loop and the start; keep the rest")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, default={}, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        settings = dict(chosen.arguments)
        if "folder" in settings:
            settings["folder"] = Path(settings["folder"])
        print(json.dumps(MEASURES[chosen.measure](**settings)))
        return
    found = {} if chosen.only_start else run(chosen.gigabytes, chosen.dialogues)
    if chosen.only_start and chosen.output.exists():
        found = json.loads(chosen.output.read_text())
    found |= run_newest(chosen.dialogues, chosen.rows)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found, MAX_LENGTH))


if __name__ == "__main__":
    main()
