"""`visualchat-generate`: answers of one model or several to a file of conversations, side by side."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from visualchat.cli.config import PLAIN, check_number, silence_libraries
from visualchat.cli.main import generate as main
from visualchat.cli.run_folder import continued_by, locked
from visualchat.data.batching.images import with_decoded_images
from visualchat.data.progress import bar
from visualchat.data.sources.questions import Questions, open_rounds
from visualchat.dialogue import Dialogue
from visualchat.engine import Engine
from visualchat.engine.image_store import ImageStore
from visualchat.files import whole_file
from visualchat.generation.answering import Answering, answer_rounds, by_engine
from visualchat.generation.journal import Journal
from visualchat.generation.page import answers_page
from visualchat.generation.records import record, side_by_side, write_table
from visualchat.images.thumbnails import thumbnail
from visualchat.model import VisualChatProcessor
from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.saved import load_model, saved_model

console = Console()

ANSWERS, IMAGES, SKIPPED = "answers", "images", "skipped.jsonl"
STEP = 4
"""Batches that are answered and written at a time."""


@dataclass(frozen=True)
class Row:
    """A conversation that waits for answers.

    Attributes:
        place: Its file and line.
        dialogue: As it was read, its images decoded.
        named: The same, its images as the file names them.
        shown: Names of the files of each round's images.
    """

    place: str
    dialogue: Dialogue
    named: Dialogue
    shown: list[list[str]]


def generate(config: DictConfig, run: Path) -> None:
    """Answer all conversations by all models; everything lies in the folder `run`."""
    silence_libraries()
    check_settings(config)
    models = model_folders(config.folder)
    source = questions(config)
    if not len(source):
        raise ValueError(f"input={config.input} holds no sound conversation; the first bad row: {source.errors[0]}")
    console.print(f"{source.name}: {len(source)} conversations, {len(source.errors)} bad rows", **PLAIN)
    journal = Journal(run, {"conversations": source.digest(), "models": [*models], **_settings(config)})
    (run / ANSWERS).mkdir(exist_ok=True)
    size = STEP * config.batch_size
    steps = [
        (name, range(start, min(start + size, len(source)))) for name in models for start in range(0, len(source), size)
    ]
    if journal.done:
        console.print(f"continuing: {journal.done} of {len(steps)} steps are there", **PLAIN)
    ready: Callable[[], Answering] | None = None
    with bar("answering", len(steps) * size) as show:
        for number, (name, indexes) in enumerate(steps):
            if number < journal.done:
                continue
            if ready is None or indexes.start == 0:
                ready = None  # one model at a time in memory
                ready = _load(models[name], name, config, journal)
            lines = _step(source, indexes, name, ready(), config, run)
            if number == 0 and source.errors:
                bad = "".join(_skipped(error.row, f"{error.reason}: {error.detail}") for error in source.errors)
                lines[SKIPPED] = bad + lines.get(SKIPPED, "")
            journal.append(lines)
            show((number + 1) * size)
    _finish(run, [*models], source)


def check_settings(config: DictConfig) -> None:
    """Refuse settings that no answer can be given by, before anything is read.

    Raises:
        ValueError: There is one; it is named.
    """
    if config.rounds not in ("open", "all"):
        raise ValueError(f"rounds={config.rounds}: expected open or all")
    for name in ("batch_size", "max_new_tokens"):
        check_number(name, config[name], 1)
    if type(config.seed) is not int:
        raise ValueError(f"seed={config.seed}: expected a whole number")
    number = int | float
    if not isinstance(config.temperature, number) or config.temperature < 0:
        raise ValueError(f"temperature={config.temperature}: expected a number from 0")
    if config.top_p is not None and not (isinstance(config.top_p, number) and 0 < config.top_p <= 1):
        raise ValueError(f"top_p={config.top_p}: expected a number above 0, at most 1, or null")
    if not isinstance(config.stop, ListConfig) or not all(isinstance(text, str) and text for text in config.stop):
        raise ValueError(f"stop={config.stop}: expected a list of texts, such as stop=['END']")


def model_folders(named: str | ListConfig | None) -> dict[str, Path]:
    """The folders of saved models by the models' names: a folder's own, or where that is `model` the one's above.

    Raises:
        ValueError: A folder holds no model, or is named twice.
    """
    folders = [saved_model(f) for f in named] if isinstance(named, ListConfig) else [saved_model(named)]
    if not folders:
        raise ValueError("folder=[] names no model")
    if twice := [str(f) for f, n in Counter(f.resolve() for f in folders).items() if n > 1]:
        raise ValueError(f"folder= names {twice[0]} twice")
    paths = [f.resolve() for f in folders]
    parts = [p.parts[1:-1] if p.name in ("model", "light") else p.parts[1:] for p in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    return {f"{'-'.join(p.parts[-2:])}": f for p, f in zip(paths, folders, strict=True)}


def questions(config: DictConfig) -> Questions:
    """The conversations of the files that `input` names.

    Raises:
        ValueError: There is no such file, it lies outside the root, or rows are damaged.
    """
    files = [config.input] if isinstance(config.input, str) else [*config.input]
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"input={file}: there is no such file")
    root = Path(config.root) if config.root is not None else Path(files[0]).parent
    names = [Path(os.path.relpath(file, root)) for file in files]
    if outside := [file for file, name in zip(files, names, strict=True) if ".." in name.parts]:
        raise ValueError(f"input={outside[0]} must lie under root={root}, from which images are named, too")
    return Questions(
        root,
        [name.as_posix() for name in names],
        image_folder=config.image_folder,
        images_first=config.images_first,
        on_error=config.on_error,
        every_round=config.rounds == "all",
    )


def _settings(config: DictConfig) -> dict[str, Any]:
    """What decides the answers, beside models and conversations."""
    names = ["rounds", "max_new_tokens", "temperature", "top_p", "stop", "seed", "batch_size", "on_error"]
    settings: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, names))
    return dict(settings)


def _load(folder: Path, name: str, config: DictConfig, journal: Journal) -> Callable[[], Answering]:
    """What gives, for each step, an engine that knows nothing of steps before but images: a resumed run is the same."""
    model = load_model(folder, config.vision, config.language)
    journal.require({f"model {name}": base_fingerprint(model, ())})
    processor, store = VisualChatProcessor.from_pretrained(folder), ImageStore()
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "stop": [*config.stop]}
    most = config.max_new_tokens

    def ready() -> Answering:
        engine = Engine(model, processor, store, max_running=config.batch_size, max_waiting=STEP * config.batch_size)
        return by_engine(engine, max_new_tokens=most, seed=config.seed, sampling=sampling)

    return ready


def _step(
    source: Questions, indexes: range, name: str, answer: Answering, config: DictConfig, run: Path
) -> dict[str, str]:
    """What one step adds to the files of the run."""
    rows: list[Row] = []
    answered, skipped = "", ""

    def leave_out(place: str, error: ValueError) -> str:
        if config.on_error != "skip":
            raise ValueError(f"{place}: {error}; on_error=skip leaves it out") from error
        return _skipped(place, str(error), name)

    for index in indexes:
        try:
            rows.append(_row(source, index, run))
        except ValueError as error:
            skipped += leave_out(source.place(index), error)
    asked = [[k for k, turn in enumerate(row.dialogue.turns) if source.every_round or not turn.answer] for row in rows]
    opened = [open_rounds(row.dialogue, every_round=source.every_round) for row in rows]
    for row, answers in zip(rows, answer_rounds(opened, asked, answer), strict=True):
        if isinstance(answers, ValueError):
            skipped += leave_out(row.place, answers)
        else:
            answered += record(row.named, row.place, name, answers, Path(source.root), row.shown).line()
    return {f"{ANSWERS}/{name}.jsonl": answered, **({SKIPPED: skipped} if skipped else {})}


def _row(source: Questions, index: int, run: Path) -> Row:
    """A conversation with its images, which also go into the run's folder, for its page."""
    named = source[index]
    dialogue = with_decoded_images(named)
    shown = [[thumbnail(image, run / IMAGES) for image in turn.images] for turn in dialogue.turns]  # type: ignore[arg-type]
    return Row(source.place(index), dialogue, named, shown)


def _skipped(place: str, reason: str, model: str | None = None) -> str:
    """The line of a row that has no answer, of one model or, as None, of all."""
    return json.dumps({"row": place, "reason": reason, "model": model}, ensure_ascii=False) + "\n"


def _finish(run: Path, models: Sequence[str], source: Questions) -> None:
    """Write table and page from the answers, and say what is where."""
    conversations = side_by_side({name: run / ANSWERS / f"{name}.jsonl" for name in models})
    write_table(conversations, models, run / "answers.csv")
    with whole_file(run / "answers.html") as draft:
        draft.write_text(answers_page(f"Answers to {source.name}", conversations, models), encoding="utf-8")
    for name in models:
        ended = Counter(e for by_model in conversations.values() if name in by_model for e in by_model[name].ended)
        cut = f", {ended['length']} cut at max_new_tokens" if ended["length"] else ""
        console.print(f"{name}: {sum(ended.values())} answers{cut}", **PLAIN)
    if (run / SKIPPED).is_file():
        skipped = (run / SKIPPED).read_text(encoding="utf-8").rstrip("\n").split("\n")
        first = json.loads(skipped[0])
        console.print(f"{len(skipped)} rows were left out, the first: {first['row']}: {first['reason']}", **PLAIN)
    _say_what_is_where(run, {f"{ANSWERS}/": "a line of JSON a conversation, for each model"})


def _say_what_is_where(run: Path, first: Mapping[str, str]) -> None:
    what = {
        **first,
        "answers.csv": "a row a question",
        "answers.html": "a page with the images",
        SKIPPED: "rows that were left out, with their reasons",
    }
    for name, words in what.items():
        if (run / name).exists():
            console.print(f"  {os.path.relpath(run / name)}  {words}", **PLAIN)


def run(config: DictConfig) -> None:
    """The command."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with continued_by(folder), locked(folder, "writing answers"):
        generate(config, folder)


if __name__ == "__main__":
    main()
