"""`visualchat-chat`: talk with a saved model in the terminal, with images in any round."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from visualchat.chat.session import ChatSession
from visualchat.cli.config import quieten
from visualchat.cli.main import chat as main
from visualchat.cli.saved import load_model, saved_model
from visualchat.images import decode_image
from visualchat.model import VisualChatProcessor
from visualchat.tiny.scenes import draw, random_scene

HELP = """Type a question, or:
  /image PATH   show the model a picture with your next question (again for more pictures)
  /draw [SEED]  draw a fresh picture of the tiny world and show it with your next question
  /reset        start a new conversation
  /quit         leave"""


def picture_in_blocks(image: Image.Image, columns: int = 32) -> Text:
    """A picture for the terminal, two pixels a character."""
    most = 2 * columns  # rows of the tallest picture: a taller one gets narrower
    columns = min(columns, max(1, most * image.width // image.height))
    rows = min(most, max(2, round(columns * image.height / image.width) // 2 * 2))
    pixels = image.resize((columns, rows)).load()
    assert pixels is not None
    text = Text()
    for y in range(0, rows, 2):
        for x in range(columns):
            text.append("▀", Style(color=_colour(pixels[x, y]), bgcolor=_colour(pixels[x, y + 1])))
        text.append("\n")
    return text


def _colour(pixel: Any) -> Color:
    red, green, blue = pixel
    return Color.from_rgb(red, green, blue)


def _user_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~name" of nobody
        raise ValueError(f"{text}: {error}") from error


class Terminal:
    """Reads commands and questions, prints answers as they come."""

    def __init__(self, session: ChatSession, console: Console) -> None:
        self.session, self.console = session, console
        self.waiting: list[Image.Image] = []
        self.drawn = 0

    def show(self, image: Image.Image) -> None:
        """Keep a picture for the next question and show it."""
        self.waiting.append(image)
        self.console.print(picture_in_blocks(image), end="")
        self.console.print(f"Image {self.session.images + len(self.waiting)} goes with your next question.")

    def command(self, line: str) -> bool:
        """Obey a line that starts with a slash; False when it is time to leave."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/image" and argument:
            self.show(decode_image(_user_path(argument)))
        elif name == "/draw" and (not argument or argument.isdigit()):
            self.drawn += 1
            self.show(draw(random_scene(int(argument) if argument else self.drawn)))
        elif line == "/reset":
            self.session.reset()
            self.waiting = []
            self.console.print("A new conversation.")
        elif line == "/quit":
            return False
        else:
            self.console.print(HELP)
        return True

    def question(self, line: str) -> None:
        """Ask, and print the answer as it comes; Ctrl-C cuts it short."""
        answer = self.session.ask(line, self.waiting)
        self.waiting = []
        try:
            for piece in answer:
                self.console.out(piece, end="", style="bold", highlight=False)
                self.console.file.flush()
        except KeyboardInterrupt:
            answer.close()
        self.console.print()

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self.console.print(HELP)
        while True:
            try:
                line = self.console.input("[cyan]you>[/cyan] ").strip()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.question(line)
            except ValueError as error:
                self.console.out(error, style="red", highlight=False)


def run(config: DictConfig) -> None:
    """The command."""
    quieten()
    folder = saved_model(config.folder)
    model = load_model(folder, config.vision, config.language)
    processor = VisualChatProcessor.from_pretrained(folder)
    session = ChatSession(model, processor, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    console = Console(file=sys.stdout)
    console.print(f"{folder}, attention {model.config.attention_kind}", highlight=False)
    Terminal(session, console).run()


if __name__ == "__main__":
    main()
