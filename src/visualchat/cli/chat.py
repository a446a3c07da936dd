"""`visualchat-chat`: talk with a saved model in the terminal, with images in any round."""

from __future__ import annotations

import io
import random
import re
import shlex
import signal
import sys
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console

from visualchat.chat import ChatSession
from visualchat.cli.config import PLAIN, attention_setting, silence_libraries
from visualchat.cli.image_in_blocks import image_in_blocks
from visualchat.cli.line_editor import line_editor
from visualchat.cli.main import chat as main
from visualchat.cli.mistakes import nearest
from visualchat.images.decode import decode_image
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model, saved_model
from visualchat.tiny.scenes import draw, random_scene

HELP = """Type a question, or:
  /image PATH   show the model an image with your next question (again for more images)
  /draw [SEED]  draw a new image of the tiny world and show it with your next question
  /clear        forget the images that wait for your next question
  /undo         take the last question and its answer back
  /edit N TEXT  ask TEXT in place of question N and continue from there
  /save FOLDER  keep the conversation, with its images; it is data to train on, too
  /load FOLDER  continue a saved conversation in place of this one
  /images       list the images of the conversation
  /stats        tell how many images were reused, and how fast the last answer was
  /reset        start a new conversation
  /quit         leave, as Ctrl-D does; Ctrl-C stops an answer or empties the line"""

PROMPT = "you> "
COMMANDS = [line.split()[0] for line in HELP.splitlines()[1:]]


def what_to_type(name: str) -> str:
    """The help; of a command that has other arguments its line, of none that there is the one that may be meant."""
    if name in ("/", "/help"):
        return HELP
    if name in COMMANDS:
        line = next(line for line in HELP.splitlines() if line.split()[0] == name)
        return f"expected {line.strip()}"
    return f"unknown command {name}{nearest(name, COMMANDS)}\n/help lists all"


def named_files(text: str) -> list[Path]:
    """The files that a person means: one path as it stands, or several quoted as in a shell.

    Raises:
        ValueError: A quotation does not end, or a home folder does not exist.
    """
    try:
        whole = Path(text).expanduser()
        if whole.exists() or not re.search(r"""["'\\]""", text):
            return [whole]
        return [Path(name).expanduser() for name in shlex.split(text)]
    except (RuntimeError, ValueError) as error:  # "~name" of no user
        raise ValueError(f"{text}: {error}") from error


class Terminal:
    """Reads commands and questions, prints answers as they come.

    Args:
        session: Answers.
        console: Prints.
        read: Gives the next line; raises `EOFError` at the end, `KeyboardInterrupt` at Ctrl-C. None for plain lines.
    """

    def __init__(self, session: ChatSession, console: Console, read: Callable[[], str] | None = None) -> None:
        self.session, self.console = session, console
        self.read = read or partial(console.input, f"[cyan]{PROMPT}[/cyan]")
        self.waiting: list[Image.Image] = []

    def show(self, image: Image.Image) -> None:
        """Keep an image for the next question and show it."""
        self.waiting.append(image)
        self.console.print(image_in_blocks(image), end="")
        self.console.print(f"Image {self.session.images + len(self.waiting)} goes with your next question.")

    def command(self, line: str) -> bool:
        """Obey a line that starts with a slash; False when it is time to leave."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/image" and argument:
            for image in [decode_image(path) for path in named_files(argument)]:
                self.show(image)
        elif name == "/draw" and (not argument or argument.isdigit()):
            seed = int(argument) if argument else random.randrange(1_000_000)
            self.show(draw(random_scene(seed)))
        elif name == "/save" and argument:
            (folder,) = named_files(argument)[:1]
            self.session.save(folder)
            self.console.print(f"Saved in {folder}/", **PLAIN)
        elif name == "/load" and argument:
            (folder,) = named_files(argument)[:1]
            self.session.load(folder)
            self.waiting = []
            self.console.print(
                f"{len(self.session.turns)} rounds with {self.session.images} images are loaded.", **PLAIN
            )
        elif name == "/edit" and (found := re.fullmatch(r"(\d+)\s+(\S.*)", argument)):
            self.show_answer(self.session.edit(int(found[1]), found[2]))
        elif line == "/images":
            self.list_images()
        elif line == "/stats":
            self.show_stats()
        elif line == "/clear":
            self.waiting = []
            self.console.print("No image waits.")
        elif line == "/undo":
            self.session.undo()
            self.console.print(f"Taken back; {len(self.session.turns)} rounds are left.")
        elif line == "/reset":
            self.session.reset()
            self.waiting = []
            self.console.print("A new conversation.")
        elif line == "/quit":
            return False
        else:
            self.console.print(what_to_type(name), **PLAIN)
        return True

    def list_images(self) -> None:
        """A line for each image, those that wait among them."""
        rounds = [*(turn.images for turn in self.session.turns), self.waiting]
        shown: list[tuple[int, Any]] = [(n, image) for n, images in enumerate(rounds, start=1) for image in images]
        for number, (asked, image) in enumerate(shown, start=1):
            where = "your next question" if asked == len(rounds) else f"question {asked}"
            self.console.print(f"Image {number}: {image.width} x {image.height} pixels, with {where}", **PLAIN)
        if not shown:
            self.console.print("There is no image yet.")

    def show_stats(self) -> None:
        """What was reused, and how fast the last answer was."""
        session, store = self.session, self.session.store.stats
        if session.why_not_stored is None:
            held = (store.device_bytes + store.host_bytes) / 1e6
            text = f"Images: {store.misses} computed, {store.hits} reused, {store.entries} kept in {held:.1f} MB."
        else:
            text = f"Images are reused with all that precedes them only: {session.why_not_stored}."
        self.console.print(text, **PLAIN)
        if session.timing is not None:
            speed, tokens = session.timing.tokens_per_second, session.timing.tokens
            rate = "" if speed is None else f", then {speed:.1f} tokens a second"
            text = f"Last answer: {tokens} tokens, the first after {session.timing.first_token:.2f} s{rate}."
            self.console.print(text, **PLAIN)

    def question(self, line: str) -> None:
        """Ask, with the images that wait."""
        answer = self.session.ask(line, self.waiting)
        self.waiting = []
        self.show_answer(answer)

    def show_answer(self, answer: Generator[str, None, None]) -> None:
        """Print an answer as it comes; Ctrl-C cuts it short, or takes the question back where nothing was said yet."""
        before = self.session.turns
        try:
            for piece in answer:
                self.console.out(piece, end="", style="bold", highlight=False)
                self.console.file.flush()
        except KeyboardInterrupt:
            answer.close()
            if self.session.turns is before:
                raise
        self.console.print()

    def run(self) -> None:
        """Until /quit, the end of the input, or Ctrl-C twice in a row."""
        self.console.print(HELP, highlight=False, markup=False)
        interrupted = False
        while True:
            try:
                line = self.read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self.console.print("Ctrl-C again, or Ctrl-D, leaves.")
                continue
            interrupted = False
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.question(line)
            except KeyboardInterrupt:
                self.console.print("Interrupted; the conversation is as before.")
            except (ValueError, OSError, torch.OutOfMemoryError) as error:
                self.console.out(error, style="red", highlight=False)


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process as a signal asks, but let the line editor put the terminal back before."""
    raise SystemExit(128 + number)


def run(config: DictConfig) -> None:
    """The command."""
    silence_libraries()
    signal.signal(signal.SIGTERM, _leave)
    folder = saved_model(config.folder)
    model = load_model(folder, config.vision, config.language)
    processor = VisualChatProcessor.from_pretrained(folder)
    session = ChatSession(model, processor, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    console = Console(file=sys.stdout)
    console.print(f"{folder}, {attention_setting(model.config.attention)}", **PLAIN)
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text are refused with their line
        sys.stdin.reconfigure(errors="surrogateescape")
    at_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    Terminal(session, console, line_editor(PROMPT, COMMANDS) if at_a_terminal else None).run()


if __name__ == "__main__":
    main()
