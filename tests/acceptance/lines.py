"""Finds what the documents tell people to type: every line of every shell block that starts with a command of ours.

Blocks are read by bash itself, with nothing installed: a function stands in for every program and notes its words. So
continuations, comments, quotes and variables count as they would on the reader's screen, and nothing runs.
"""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
SPAN = re.compile(r"`([^`\n]+)`")
SHELL = ("bash", "sh", "shell", "console", "")
"""Languages of blocks that are typed; blocks of none are read if their first word is ours."""

OURS = re.compile(r"visualchat-\w+|make|torchrun|srun")
"""Commands whose lines are tried; those of other people (git, pip, source) are theirs."""

MADE = (["train"], ["chat"])
"""Targets of make behind which a command of ours stands; ARGS go to it."""

LISTEN = r"""
exec 3>&1 >/dev/null
set -f
NODE=0 SLURM_JOB_ID=1234
command_not_found_handle() {
    local name noted=()
    for name in $(compgen -e); do
        case $name in PWD|OLDPWD|SHLVL|PATH|_) ;; *) noted+=("$name=${!name}") ;; esac
    done
    printf '%s\0' "${noted[@]}" "$@" $'\x1e' >&3
}
"""
"""Makes bash note each program's words, its own variables before them, in place of running it, and a separator behind.

They are written at once: both ends of a pipeline note theirs at the same time.

`NODE` and `SLURM_JOB_ID` are what documents leave to the reader and the scheduler.
"""


@dataclass(frozen=True)
class Line:
    """A command as a document has it, its variables filled in.

    Attributes:
        document: Where it stands, from the repository's root on.
        words: The command and its arguments.
        variables: Set for this command alone (`NAME=value command`) or exported before it.
        typed: Whether it stands in a block; else it is a span in a sentence or a table.
    """

    document: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    typed: bool = True

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"

    def command(self) -> list[str]:
        """The command of ours that it comes to, without `make` and launchers; empty for other targets of make."""
        words = [*self.words]
        if words[0] == "make":
            targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            arguments = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
            return [f"visualchat-{targets[0]}", *shlex.split(*arguments or [""])] if targets[:1] in MADE else []
        if words[0] == "torchrun":
            module = words.index("-m") + 1
            return [words[module].replace("visualchat.cli.", "visualchat-"), *words[module + 1 :]]
        if words[0] == "srun":
            return words[next(index for index, word in enumerate(words) if word.startswith("visualchat-")) :]
        return words


def blocks(markdown: str) -> Iterator[tuple[str, str]]:
    """Every block of a text, fenced or indented, as its language (empty for none) and its lines."""
    for found in FENCED.finditer(markdown):
        yield found[2], "".join(line.removeprefix(found[1]) for line in found[3].splitlines(keepends=True))
    for found in INDENTED.finditer(FENCED.sub("", markdown)):
        yield "", re.sub("^ {4}", "", found[0], flags=re.MULTILINE)


def unset_variables(script: str) -> list[str]:
    """The first variable that a script uses without having set it, if there is one."""
    with tempfile.TemporaryDirectory() as empty:
        command = ["/bin/bash", "--norc", "-c", f"set -u\n{LISTEN}{script}"]
        listened = subprocess.run(command, cwd=empty, env={"PATH": empty}, capture_output=True, text=True)
    return re.findall(r"(\w+): unbound variable", listened.stderr)


def commands(script: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """What a shell script would run, in its order: variables and words of each command."""
    with tempfile.TemporaryDirectory() as empty:
        listened = subprocess.run(
            ["/bin/bash", "--norc", "-c", LISTEN + script],
            cwd=empty,
            env={"PATH": empty},
            capture_output=True,
            text=True,
        )
    for words in listened.stdout.split("\x1e\0")[:-1]:
        found, variables = words.removesuffix("\0").split("\0"), {}
        while re.match(r"\w+=", found[0]):
            name, _, variables[name] = found.pop(0).partition("=")
        yield variables, found


def lines_of(document: str, markdown: str) -> Iterator[Line]:
    """The lines of a document that start with a command of ours, and the spans that show one with arguments."""
    for language, text in blocks(markdown):
        text = re.sub(r"^\$ ", "", text, flags=re.MULTILINE)  # a prompt
        if language in SHELL and (language or OURS.match(text)):
            for variables, words in commands(text):
                if OURS.fullmatch(words[0]):
                    yield Line(document, tuple(words), tuple(variables.items()))
    for span in SPAN.findall(FENCED.sub("", markdown)):
        if re.match(r"visualchat-\w+ .|make \w+ ARGS=", span):
            for _, words in commands(span):
                yield Line(document, tuple(words), typed=False)


def comment_lines(document: str, text: str) -> Iterator[Line]:
    """The lines in a configuration's comments; what each does stands behind it, after two blanks or a colon."""
    for shown in re.findall(r"^# +(visualchat-\w+ .+?)(?:  .*|: .*)?$", text, re.MULTILINE):
        for _, words in commands(shown):
            yield Line(document, tuple(words), typed=False)


def all_lines() -> list[Line]:
    """Of all documents and of the files of conf/ that are a command's, each once."""
    found = [line for path in DOCUMENTS for line in lines_of(str(path.relative_to(ROOT)), path.read_text("utf-8"))]
    for path in sorted((ROOT / "conf").glob("*.yaml")):
        found += comment_lines(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    return list(dict.fromkeys(found))
