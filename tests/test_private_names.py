"""Private names of libraries that the package touches: each is in one table, is still there, and its library is capped.

A library may rename such a name at any release, often without an error here: what is set is no longer read, what is
overridden no longer called. So `pyproject.toml` bounds these libraries from above, and after an upgrade this test says
which place to look at.
"""

import ast
import importlib
import inspect
import operator
import re
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "visualchat"


@dataclass(frozen=True)
class Private:
    """A name that a library does not promise to keep.

    Attributes:
        where: The module that has it, and after a colon the class or function.
        name: An attribute, a method, an argument; or what an object is given while the library runs.
        used_in: Our module.
    """

    where: str
    name: str
    used_in: str


CONFIG = "transformers.configuration_utils:PreTrainedConfig"
MODEL = "transformers.modeling_utils:PreTrainedModel"
GENERATION = "transformers.generation.utils:GenerationMixin"
LOOP = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop"
DEEPSPEED = "lightning.pytorch.strategies.deepspeed:DeepSpeedStrategy"
PARALLEL = "lightning.pytorch.strategies.model_parallel:ModelParallelStrategy"

PRIVATE = (
    Private("torch", "Tensor._version", "attention/plan_cache.py"),
    Private("torch", "Tensor._version", "engine/image_store.py"),
    Private("torch.nn:Module", "_modules", "model/modeling_visualchat.py"),
    Private("torch.ops.aten", "_scaled_dot_product_flash_attention_for_cpu", "attention/parts.py"),
    Private("torch.ops.aten", "_scaled_dot_product_flash_attention_for_cpu_backward", "attention/parts.py"),
    Private("torch.utils", "_pytree", "training/strategies/fsdp.py"),
    Private("torch.distributed.distributed_c10d", "_world", "training/strategies/silent_ranks.py"),
    Private("torch.distributed.distributed_c10d", "_set_pg_timeout", "training/strategies/silent_ranks.py"),
    Private("ray.serve", "_private", "serve/cluster/replicas.py"),
    Private("ray.serve._private.router:SingletonThreadRouter", "_asyncio_loop", "serve/cluster/replicas.py"),
    Private(CONFIG, "_attn_implementation", "attention/register.py"),
    Private(CONFIG, "_attn_implementation", "model/attn_implementation.py"),
    Private(CONFIG, "_attn_implementation", "engine/image_store.py"),
    Private(CONFIG, "_attn_implementation", "model/base_model.py"),
    Private(CONFIG, "_attn_implementation", "model/image_states.py"),
    Private(CONFIG, "_attn_implementation", "model/projector.py"),
    Private(CONFIG, "_name_or_path", "training/feature_cache.py"),
    Private(MODEL, "_supports_sdpa", "model/base_model.py"),
    Private(MODEL, "_supports_sdpa", "model/vision/modeling_qwen_vl.py"),
    Private(MODEL, "_supports_flex_attn", "model/base_model.py"),
    Private(MODEL, "_supports_attention_backend", "model/base_model.py"),
    Private(MODEL, "_skip_keys_device_placement", "model/base_model.py"),
    Private(MODEL, "_no_split_modules", "model/vision/modeling_qwen_vl.py"),
    Private(MODEL, "_init_weights", "model/vision/modeling_qwen_vl.py"),
    Private(GENERATION, "_expand_inputs_for_generation", "model/generation.py"),
    Private(GENERATION, "_prepare_cache_for_generation", "model/generation.py"),
    Private(GENERATION, "_prepare_attention_mask_for_generation", "model/generation.py"),
    Private(
        "transformers.utils.hub:cached_files", "_raise_exceptions_for_missing_entries", "model/vision/checkpoint.py"
    ),
    Private("transformers.utils.hub:cached_files", "_raise_exceptions_for_missing_entries", "model/vision/loading.py"),
    Private("transformers.image_processing_backends:PilBackend", "_preprocess", "model/vision/pixels.py"),
    Private(LOOP, "_batches_that_stepped", "training/callbacks/checkpoints.py"),
    Private(LOOP, "_should_accumulate", "training/callbacks/checkpoints.py"),
    Private("lightning.pytorch.callbacks:RichProgressBar", "_get_train_description", "training/callbacks/progress.py"),
    Private("lightning.pytorch.loggers:WandbLogger", "_wandb_init", "training/loggers.py"),
    Private("lightning.pytorch.core.optimizer:LightningOptimizer", "_optimizer", "training/strategies/fsdp.py"),
    Private(PARALLEL, "_data_parallel_size", "training/strategies/fsdp.py"),
    Private(PARALLEL, "_tensor_parallel_size", "training/strategies/fsdp.py"),
    Private(
        "lightning.pytorch.strategies.launchers", "_SubprocessScriptLauncher", "training/strategies/silent_ranks.py"
    ),
    Private("lightning.fabric.strategies.deepspeed", "_format_precision_config", "training/strategies/zero.py"),
    Private(DEEPSPEED, "_format_config", "training/strategies/zero.py"),
    Private(DEEPSPEED, "_init_config_if_needed", "training/strategies/zero.py"),
    Private(DEEPSPEED, "_init_deepspeed_distributed", "training/strategies/zero.py"),
    Private("deepspeed.ops", "__compatible_ops__", "training/strategies/zero.py"),
    Private("deepspeed.runtime.zero.partition_parameters:Init", "ds_id", "model/sharding.py"),
    Private("deepspeed.runtime.zero.partition_parameters:Init", "ds_numel", "model/parameters.py"),
    Private("deepspeed.runtime.engine:DeepSpeedEngine", "checkpoint_engine", "training/strategies/zero.py"),
    Private("bitsandbytes.nn:Linear4bit", "support_avx512bf16_for_cpu", "model/language.py"),
    Private("bitsandbytes.nn:Params4bit", "quant_state", "model/parameters.py"),
    Private("hydra", "_internal", "cli/command.py"),
    Private("hydra._internal.utils", "get_args_parser", "cli/command.py"),
    Private("hydra.core.utils:JobReturn", "_return_value", "cli/sweep_report.py"),
)

DISTRIBUTIONS = {"hydra": "hydra-core"}
"""The libraries that are installed under another name."""

DOCUMENTED = {
    *(name for kind in (object, type, BaseException, types.FunctionType, types.ModuleType) for name in dir(kind)),
    *("__annotations__", "__future__", "__main__", "__post_init__", "__signature__", "__version__", "_exit", "_fields"),
    *("_convert_", "_target_"),  # Hydra's
}
"""Names with an underscore that are no secret."""


def owner(where: str):
    """The object that has a private name."""
    module, _, inner = where.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:  # torch.ops.aten is an attribute that looks like a module
        parent, _, name = module.rpartition(".")
        found = getattr(importlib.import_module(parent), name)
    return getattr(found, inner) if inner else found


def has(where: str, name: str) -> bool:
    """Whether a name is an attribute; or stands in the source of a class or function, which makes it while it runs."""
    it = owner(where)
    try:
        operator.attrgetter(name)(it)
    except AttributeError:
        kinds = it.__mro__ if inspect.isclass(it) else [it] if inspect.isfunction(it) else []
        return any(re.search(rf"\b{name}\b", source_of(kind)) for kind in kinds)
    return True


@cache
def source_of(it) -> str:
    try:
        return inspect.getsource(it)
    except (OSError, TypeError):  # compiled
        return ""


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: f"{private.where} {private.name}")
def test_the_library_still_has_it(private):
    library = private.where.partition(":")[0].partition(".")[0]
    assert has(private.where, private.name), (
        f"{library} no longer has {private.name} in {private.where}: see what src/visualchat/{private.used_in} "
        "does with it, and what took its place"
    )


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: f"{private.used_in} {private.name}")
def test_it_is_still_used(private):
    """A name made of two parts in our source may stand there as one of them."""
    source = (PACKAGE / private.used_in).read_text(encoding="utf-8")
    word = private.name.rpartition(".")[2].removesuffix("_backward")
    assert re.search(rf"\b{word}\b", source), f"{private.used_in} no longer uses {private.name}: drop it from the table"


def test_libraries_with_private_names_have_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounded = {r.name for r in map(Requirement, lines) if any(s.operator == "<" for s in r.specifier)}
    libraries = {private.where.partition(":")[0].partition(".")[0] for private in PRIVATE}
    open_ended = sorted({DISTRIBUTIONS.get(library, library) for library in libraries} - bounded)
    assert not open_ended, f"pyproject.toml gives no upper bound to {', '.join(open_ended)}, whose private names we use"


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def is_private(name: str) -> bool:
    return name.startswith("_") and name not in DOCUMENTED


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that a module makes: functions, classes, variables, attributes of its own objects."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.arg(arg=name)
            ):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The private names that a module uses of other objects and modules, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name):
                yield node.lineno, name
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=name), *_]):
                if isinstance(name, str) and is_private(name):
                    yield node.lineno, name
            case ast.keyword(arg=str(name)) if is_private(name):
                yield node.value.lineno, name
            case ast.ImportFrom(module=str(module), names=names):
                words = [*module.split("."), *(alias.name for alias in names)]
                yield from ((node.lineno, word) for word in words if is_private(word))


def overridden(file: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The private names that a module's classes define or set, and a library's class among their bases has, too."""
    module = importlib.import_module(f"visualchat.{file.removesuffix('.py').replace('/', '.')}")
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        bases = [kind for kind in getattr(module, node.name).__mro__ if kind.__module__ not in ("builtins", "enum")]
        bases = [kind for kind in bases if not kind.__module__.startswith("visualchat")]
        for line, name in given(node):
            if any(name in vars(kind) or re.search(rf"self\.{name}\b", source_of(kind)) for kind in bases):
                yield line, name


def given(node: ast.ClassDef) -> Iterator[tuple[int, str]]:
    """The private names in a class's body, and those it sets on its objects."""
    for inner in (*node.body, *(inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute))):
        match inner:
            case ast.FunctionDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                pass
            case _:
                continue
        if is_private(name) and not name.endswith("__"):
            yield inner.lineno, name


def test_every_private_name_is_in_the_table():
    trees = modules()
    ours = {name for tree in trees.values() for name in defined(tree)} | {Path(file).stem for file in trees}
    known = {(private.used_in, part) for private in PRIVATE for part in private.name.split(".")}
    missing = []
    for file, tree in trees.items():
        names = {(line, name) for line, name in used(tree) if name not in ours}
        if not file.endswith("__main__.py") and not file.startswith("harness/lmms_"):  # lmms-eval is not installed
            names |= set(overridden(file, tree))
        missing += [
            f"src/visualchat/{file}:{line}: {name}" for line, name in sorted(names) if (file, name) not in known
        ]
    assert not missing, (
        "private names of libraries that are not in PRIVATE (prefer a public one; else add it there, and give the "
        "library an upper bound in pyproject.toml):\n" + "\n".join(missing)
    )


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("trainer.fit_loop._steps += 1", ["_steps"]),
        ("getattr(model, '_held', None)", ["_held"]),
        ("load(path, _quiet=True)", ["_quiet"]),
        ("from hydra._internal.utils import a", ["_internal"]),
        ("from lightning.launchers import _Launcher", ["_Launcher"]),
        ("ops.__compatible_ops__['x'] = False", ["__compatible_ops__"]),
        ("error.__cause__, row._fields, type(x).__name__, __file__, model.layers", []),
    ],
)
def test_private_names_are_found(source, names):
    assert [name for _, name in used(ast.parse(source))] == names
