"""The repository keeps its word: no machine's paths, versions pinned, and documents that name only what exists."""

import ast
import importlib.metadata
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

NOT_OURS = {
    ".git",
    ".venv",
    ".venv-lmms",
    ".venv-minimal",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "build",
    "dist",
}
LEFT_BY_RUNS = {"runs", "outputs", "multirun", "wandb", "lightning_logs"}

MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:work|root|home)/")
"""The start of a path that exists on one machine only."""

TORCH_ACCELERATORS = ("nvidia-", "cuda-", "triton")
"""What a CUDA build of torch pins by itself and a CPU build does not have."""


def repository_files() -> list[Path]:
    """The files that belong to the repository, also where git is missing or knows nothing of this tree."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        found = [ROOT / name for name in listed if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        found = []
        for folder, subfolders, names in os.walk(ROOT):
            skipped = NOT_OURS | (LEFT_BY_RUNS if Path(folder) == ROOT else set())
            subfolders[:] = [name for name in subfolders if name not in skipped]
            found += [Path(folder) / name for name in names]
    return [path for path in found if path.is_file()]


def text_of(path: Path) -> str | None:
    """A file's text, None where it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def code_lines(markdown: str) -> Iterator[str]:
    """The lines of fenced blocks and the inline spans of a Markdown text."""
    fences = re.compile(r"^ *```.*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    for block in fences.findall(markdown):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", fences.sub("", markdown))


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a shell line as words: no prompt, comment, leading assignment or `bin/`."""
    for part in re.split(r"&&|\|\||[;|]", line.strip().removeprefix("$ ")):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:  # not shell, such as a sentence with an apostrophe
            words = part.split()
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
        if words:
            yield [re.sub(r"^.*\bbin/", "", words[0]), *words[1:]]


def unknown_names(markdown: str, targets: set[str], scripts: set[str]) -> list[str]:
    """What a document's code names and does not exist: make targets, our console commands, our `python -m` modules."""
    unknown = []
    for line in code_lines(markdown):
        for name, *arguments in commands(line):
            if name == "make":
                named = [word for word in arguments if "=" not in word and not word.startswith("-")]
                unknown += [f"make {word}" for word in named if word not in targets]
            elif name.startswith("visualchat-") and name not in scripts:
                unknown.append(name)
            elif name.startswith("python") and arguments[:1] == ["-m"] and arguments[1].startswith("visualchat"):
                module = ROOT.joinpath("src", *arguments[1].split("."))
                if not module.with_suffix(".py").is_file() and not (module / "__main__.py").is_file():
                    unknown.append(f"python -m {arguments[1]}")
    return unknown


def pins() -> dict[str, str]:
    """constraints.txt as canonical name -> version; every line must be exactly `name==version`."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([0-9][0-9a-z.]*)", line)
        assert match, f"not `name==version`: {line!r}"
        name = canonicalize_name(match[1])
        assert name not in found, f"pinned twice: {name}"
        found[name] = match[2]
    return found


def declared() -> list[Requirement]:
    """All requirements of pyproject.toml on others, those of the extras included."""
    extras = PROJECT["optional-dependencies"].values()
    found = [Requirement(text) for group in (PROJECT["dependencies"], *extras) for text in group]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


def test_no_machine_paths():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in repository_files()
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("open('/{}/x')", True),
        ("file:///{}/x", True),
        ("https://example.org/{}/", False),
        ("docs/{}/x", False),
    ],
)
@pytest.mark.parametrize("folder", ["work", "root", "home"])
def test_machine_paths_are_recognised(text, is_path, folder):
    assert bool(MACHINE_PATH.search(text.format(folder))) == is_path


def test_help_names_every_make_target():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^ *make ([\w-]+) ", done.stdout, re.MULTILINE)) == make_targets()


def test_ci_runs_make_targets_that_exist():
    files = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    for path in files:
        named = set(re.findall(r"\bmake ([a-z][\w-]*)", path.read_text(encoding="utf-8")))
        assert named, f"{path.relative_to(ROOT)} runs no make target"
        assert named <= make_targets(), path.relative_to(ROOT)


def test_console_commands_lead_to_functions():
    for command, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        path = ROOT.joinpath("src", *module.split(".")).with_suffix(".py")
        assert path.is_file(), f"{command}: {path.relative_to(ROOT)} is missing"
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert function in {node.name for node in body if isinstance(node, ast.FunctionDef)}, target


def test_constraints_pin_what_pyproject_declares():
    pinned = pins()
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not pinned"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes the pinned {pinned[name]}"


def test_constraints_pin_the_full_closure():
    pinned = pins()
    waiting, seen, unpinned = declared(), set(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen or name.startswith(TORCH_ACCELERATORS):
            continue
        seen.add((name, *sorted(requirement.extras)))
        if name not in pinned:
            unpinned.add(name)
        try:
            below = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed here
            continue
        extras = requirement.extras or {""}
        waiting += [r for r in below if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    assert not unpinned


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_commands_that_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "make install" in text or "make train" in text, f"{document} does not say how to begin"
    assert not unknown_names(text, make_targets(), set(PROJECT["scripts"]))


def test_unknown_commands_are_found():
    text = """
Run `make test` and make sure; `make nothing`, `.venv/bin/visualchat-sing --loud`, the model `org/visualchat-7b`.

```bash
$ make train ARGS="make_believe=1 a=b" && make -s alpha test  # make beta
X=1 visualchat-train trainer=gpu
python -m visualchat.cli.nowhere; echo 'make gamma'
```
"""
    assert unknown_names(text, {"test", "train"}, {"visualchat-train"}) == [
        "make alpha",
        "python -m visualchat.cli.nowhere",
        "make nothing",
        "visualchat-sing",
    ]


def test_files_are_short_enough_to_read():
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in repository_files() if path.suffix == ".py"
    }
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 400} == {}


def test_no_two_modules_of_the_tests_have_one_name():
    """Tests import their helpers by name alone: of two, a process has whichever it met first."""
    paths = [path for path in repository_files() if path.suffix == ".py" and path.is_relative_to(ROOT / "tests")]
    own = sorted(path.stem for path in paths if path.stem not in {"__init__", "conftest"})
    assert [name for name in own if own.count(name) > 1] == []
