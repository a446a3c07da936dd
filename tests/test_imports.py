"""Who may import whom: the layers of the package, read from the syntax tree and tried in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Rule:
    """Modules at or below `where`, apart from those at or below `except_in`, import nothing at or below `never`.

    With `unless_lazy` an import inside a function or under `if TYPE_CHECKING` is allowed.
    """

    where: str
    never: tuple[str, ...]
    except_in: tuple[str, ...] = ()
    unless_lazy: bool = False


LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flex", "cross")

RULES = (
    # Frameworks stay at the rim.
    Rule("visualchat", never=("hydra", "omegaconf"), except_in=("visualchat.cli",)),
    Rule(
        "visualchat",
        never=("fastapi", "starlette", "uvicorn", "prometheus_client", "llguidance"),
        except_in=("visualchat.serve", "visualchat.web"),
    ),
    Rule("visualchat", never=("ray",), except_in=("visualchat.serve.cluster",)),
    Rule(
        "visualchat", never=LIGHTNING, except_in=("visualchat.data.datamodule", "visualchat.training", "visualchat.cli")
    ),
    Rule(
        "visualchat",
        never=("deepspeed",),
        except_in=("visualchat.training.strategies.zero", "visualchat.model.sharding"),
    ),
    Rule("visualchat.training.strategies.zero", never=("deepspeed",), unless_lazy=True),
    Rule("visualchat.model.sharding", never=("deepspeed",), unless_lazy=True),
    # Data and model stand side by side: neither knows the other.
    Rule("visualchat.data", never=("visualchat.model",)),
    Rule("visualchat.model", never=("visualchat.training", "visualchat.data")),
    # Attention knows tensors and modality ids, never images or text.
    Rule(
        "visualchat.attention",
        never=("visualchat.dialogue", "visualchat.images", "PIL"),
    ),
    Rule("visualchat.attention", never=("transformers",), except_in=("visualchat.attention.register",)),
    *(
        Rule(
            f"visualchat.attention.{name}",
            never=tuple(f"visualchat.attention.{other}" for other in ATTENTION_IMPLEMENTATIONS if other != name),
        )
        for name in ATTENTION_IMPLEMENTATIONS
    ),
)

FLOORS = (
    "files",
    "figures",
    "html_page",
    "attention",
    "images",
    "dialogue",
    "data.progress",
    "data.workers",
    "data.sources",
    "data.blend",
    "data.batching",
    "data.inspection",
    "data.datamodule",
    "model",
    "engine",
    "chat",
    "generation",
    "evaluation",
    "studies",
    "serve",
    "harness",
    "plan",
    "tiny",
    "web",
    "tiny.pretraining",
    "training.ranks",
    "training.accumulation",
    "training.stopping",
    "training.checkpoint_io",
    "training.strategies",
    "training",
    "training.callbacks",
    "cli",
)
"""The rooms of the house from the ground up: a room imports from those below it alone."""


@dataclass(frozen=True)
class Import:
    """One imported name, absolute and as long as the statement tells."""

    name: str
    line: int
    lazy: bool


def is_within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """The absolute names that one node imports; `package` resolves relative imports."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])]) if level else module
            return [base if alias.name == "*" else f"{base}.{alias.name}" for alias in names]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def imports(node: ast.AST, package: str, lazy: bool = False) -> Iterator[Import]:
    """Every import at or below a node, whether it runs at once or later."""
    for name in imported_names(node, package):
        yield Import(name, node.lineno, lazy)
    for field, value in ast.iter_fields(node):
        body_runs_later = field == "body" and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        )
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from imports(child, package, lazy or body_runs_later)


def violations(rule: Rule, module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What in a module's source breaks a rule, as `line: name`."""
    if not is_within(module, (rule.where,)) or is_within(module, rule.except_in):
        return []
    package = module if is_package else module.rpartition(".")[0]
    return [
        f"{found.line}: {found.name}"
        for found in imports(ast.parse(source), package)
        if is_within(found.name, rule.never) and not (rule.unless_lazy and found.lazy)
    ]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((SRC / "visualchat").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the package in this checkout."""
    code = f"import sys; sys.path.insert(0, {str(SRC)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.where} never {' '.join(rule.never)}")
def test_rule_holds(rule):
    broken = [
        f"{path.relative_to(SRC)}:{found}"
        for module, path in modules().items()
        for found in violations(rule, module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    ]
    assert not broken, "\n".join(broken)


def floor(module: str) -> int | None:
    """The number of a module's room, counted from the ground; None for the package itself."""
    inside = [number for number, room in enumerate(FLOORS) if is_within(module, (f"visualchat.{room}",))]
    return max(inside, key=lambda number: len(FLOORS[number]), default=None)


def test_every_module_stands_in_a_room_and_every_room_exists():
    assert [name for name in modules() if floor(name) is None and name not in ("visualchat", "visualchat.data")] == []
    assert {f"visualchat.{room}" for room in FLOORS} <= modules().keys()


def test_no_room_imports_from_above():
    upward = [
        f"{name}: {found.line}: {found.name}"
        for name, path in modules().items()
        for found in imports(ast.parse(path.read_text(encoding="utf-8")), name.rpartition(".")[0])
        if (above := floor(found.name)) is not None and above > (floor(name) or 0)
    ]
    assert not upward, "\n".join(upward)


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = {
        name: {
            module
            for found in imports(ast.parse(path.read_text(encoding="utf-8")), name)
            for module in (found.name, found.name.rpartition(".")[0])
            if module in known and not found.lazy and not is_within(name, (module,))
        }
        for name, path in known.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


@pytest.mark.parametrize(
    ("commands", "heavy"),
    [
        ("study, judge", ("torch", "transformers", "torchmetrics", "lightning", "matplotlib")),
        ("chat, data, evaluate", ("torchmetrics", "lightning", "matplotlib", "peft")),
    ],
)
def test_commands_start_without_what_they_do_not_need(commands, heavy):
    done = run_python(
        f"from visualchat.cli import {commands}\nprint(*(name for name in {heavy} if name in sys.modules))"
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_rules_name_modules_that_exist():
    named = {
        name
        for rule in RULES
        for name in (rule.where, *rule.except_in, *rule.never)
        if is_within(name, ("visualchat",))
    }
    assert named <= modules().keys()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a.b, c as d", ["a.b", "c"]),
        ("from a import b, c", ["a.b", "a.c"]),
        ("from a import *", ["a"]),
        ("from . import b", ["visualchat.data.b"]),
        ("from ..model import b", ["visualchat.model.b"]),
        ("from .. import model", ["visualchat.model"]),
        ("import importlib; importlib.import_module('a.b')", ["importlib", "a.b"]),
        ("class A:\n    import a", ["a"]),
        ("try:\n    import a\nexcept ImportError:\n    import b", ["a", "b"]),
        ("def f():\n    if x:\n        import a", ["a"]),
    ],
)
def test_imports_are_found_in_any_form(source, names):
    assert [found.name for found in imports(ast.parse(source), "visualchat.data")] == names


def test_a_violation_is_found_and_only_where_the_rule_speaks():
    rule = Rule("visualchat.data", never=("visualchat.model",), except_in=("visualchat.data.special",))
    source = "import torch\nfrom ..model import loss\n"
    assert violations(rule, "visualchat.data.reader", source) == ["2: visualchat.model.loss"]
    assert violations(rule, "visualchat.data", source.replace("..", "."), is_package=True) == []
    assert violations(rule, "visualchat.data.special", source) == []
    assert violations(rule, "visualchat.database", source) == []


def test_a_lazy_import_is_told_from_one_at_import_time():
    rule = Rule("visualchat", never=("deepspeed",), unless_lazy=True)
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import deepspeed\nelse:\n    import deepspeed.a\n"
        "def f(x=__import__('deepspeed.b')):\n    import deepspeed\n"
        "class A:\n    import deepspeed.c\n"
    )
    assert violations(rule, "visualchat.x", source) == ["5: deepspeed.a", "6: deepspeed.b", "9: deepspeed.c"]


def test_import_visualchat_loads_no_framework():
    done = run_python("import visualchat; print(*{name.partition('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {*LIGHTNING, "deepspeed", "hydra", "omegaconf", "wandb"}


def test_all_but_training_and_cli_import_without_frameworks():
    rim = ("visualchat.training", "visualchat.cli", "visualchat.data.datamodule", "visualchat.harness")
    inner = [name for name in modules() if not is_within(name, rim) and not name.endswith("__main__")]
    blocked = (*LIGHTNING, "deepspeed", "hydra", "omegaconf")
    done = run_python(
        "import importlib\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))  # None makes an import fail\n"
        f"for name in {inner!r}:\n    importlib.import_module(name)\n"
    )
    assert done.returncode == 0, done.stderr
