"""Lines typed at a terminal, with editing, history and completion of commands and paths (prompt_toolkit)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.shortcuts import CompleteStyle


class CommandCompleter(Completer):
    """Completes a command at the beginning of a line, and a path behind one."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.commands = commands
        self.paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may follow the text before the cursor."""
        name, space, argument = document.text_before_cursor.partition(" ")
        if space and name in self.commands:
            yield from self.paths.get_completions(Document(argument.lstrip()), complete_event)
        elif not space and name.startswith("/"):
            yield from (Completion(word, -len(name)) for word in self.commands if word.startswith(name))


def line_editor(prompt: str, commands: Sequence[str], **terminal: Any) -> Callable[[], str]:
    """A function that reads a line; it raises `EOFError` at Ctrl-D and `KeyboardInterrupt` at Ctrl-C.

    Args:
        prompt: Stands before the line.
        commands: Words that may begin one.
        **terminal: prompt_toolkit's `input` and `output`, where they are not the terminal's.
    """
    session: PromptSession[str] = PromptSession(
        FormattedText([("ansicyan", prompt)]),
        completer=CommandCompleter(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=_history(),
        **terminal,
    )
    return session.prompt


def _history() -> History:
    """Of all chats, in the user's state folder; of this one alone where that cannot be written."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "visualchat"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return InMemoryHistory()
    return FileHistory(folder / "chat_history")
