"""The shape of the code: who imports whom, how rooms are cut, how plain a line is, how light the commands are.

Paths are computed, so that files can move between inner rooms without an edit here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "common": {"common"},
    "actors": {"common", "actors"},
    "reward": {"common", "reward"},
    "learner": {"common", "learner"},
    "cluster": {"common", "actors", "reward", "learner", "cluster"},
}
ROOMS = tuple(MAY_IMPORT)
FOLDERS = (*ROOMS, "benchmarks", "docs", "tests")
HEAVY_HOME = {
    "vllm": "actors",
    "deepspeed": "learner",
    "peft": "learner",
    "ray": "cluster",
}
"""Each of these packages is imported by one file, which stands in this room."""
PLUG_INS = {
    "shapes": {
        "actors": "shapes_rules.py",
        "reward": "shapes_world.py",
        "cluster": "shapes_world.py",
    },
    "tabletop": {
        "actors": "tabletop_rules.py",
        "reward": "tabletop_world.py",
        "cluster": "tabletop_world.py",
    },
}
"""The one file of a room that may know a rendered world."""
WORLD_FOLDERS = [("common", world) for world in PLUG_INS]
"""World 2's policy is made of the parts of the first one's."""
HANDLE_METHODS = {"call", "call_split"}
ENTRY_POINTS = [
    "cluster.train",
    "cluster.generate",
    "cluster.evaluate",
    "cluster.doctor",
    "cluster.report",
    "cluster.import_data",
]
MAX_FILES = 20
MAX_DEPTH = 2
"""A room and its inner rooms."""
MAX_FUNCTION_LINES = 60
MAX_DENSITY = 7.7
"""Syntax nodes per line of code. torchtitan, prime-rl and SkyRL stand between 6 and 8."""
VAGUE_NAMES = {"found", "each", "own"}
MAX_PRIVATE_LINES = 19
"""Lines of the tests that touch a private name of an object."""


def sources(folder: str) -> list[Path]:
    """Our Python files below a top-level folder."""
    paths = (ROOT / folder).rglob("*.py")
    return sorted(path for path in paths if "__pycache__" not in path.parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def names_of(node: ast.AST) -> Iterator[str]:
    """What an import statement names. `from a import b` gives `a` and `a.b`, which may be a module too."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        assert node.module is not None
        yield node.module
        for alias in node.names:
            yield f"{node.module}.{alias.name}"


def imports(path: Path) -> set[str]:
    """Everything that is imported anywhere in a file, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        names.update(names_of(node))
    return names


def imports_at_start(path: Path) -> set[str]:
    """What runs when a module is imported: nothing in functions, nothing for type checkers alone."""
    names: set[str] = set()
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        names.update(names_of(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
    return names


def importers_of(package: str) -> list[Path]:
    """Files of the rooms that import a package or a part of it."""
    importers = []
    for room in ROOMS:
        for path in sources(room):
            names = imports(path)
            if any(f"{name}.".startswith(f"{package}.") for name in names):
                importers.append(path)
    return importers


# Who may import whom.


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    paths = sources(room)
    assert paths
    for path in paths:
        packages = {name.partition(".")[0] for name in imports(path)}
        ours = packages & set(FOLDERS)
        forbidden = ours - MAY_IMPORT[room]
        assert not forbidden, f"{short(path)} imports {forbidden}"


@pytest.mark.parametrize(("package", "room"), HEAVY_HOME.items())
def test_heavy_packages_are_imported_in_one_file(package: str, room: str) -> None:
    homes = [short(path) for path in importers_of(package)]
    assert len(homes) == 1, homes
    assert homes[0].startswith(f"{room}/")


@pytest.mark.parametrize("world", PLUG_INS)
def test_only_plug_ins_know_a_rendered_world(world: str) -> None:
    plug_ins: dict[str, str] = {}
    for path in importers_of(f"common.{world}"):
        room, *inner = path.relative_to(ROOT).parts
        if (room, inner[0]) in WORLD_FOLDERS:
            continue
        assert PLUG_INS[world].get(room) == path.name, (
            f"{short(path)} imports common.{world}; ask the suite instead"
        )
        assert room not in plug_ins, (
            f"{short(path)} and {plug_ins[room]}: one is enough"
        )
        plug_ins[room] = short(path)


def test_no_import_cycles() -> None:
    paths = {module_of(path): path for room in ROOMS for path in sources(room)}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        # A module imports itself when a package re-exports a part of itself.
        graph[module] = (imports_at_start(path) & set(paths)) - {module}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for name in sorted(graph[module]):
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(paths)


def test_no_test_module_imports_another() -> None:
    """Helpers that two test modules share stand in a module of their own."""
    for path in sources("tests"):
        for name in imports(path):
            parts = name.split(".")
            is_test = any(part.startswith("test_") for part in parts[1:])
            assert not (parts[0] == "tests" and is_test), f"{short(path)}: {name}"


# How rooms are cut.


@pytest.mark.parametrize("room", ROOMS)
def test_folders_are_small_and_shallow(room: str) -> None:
    """Folders without Python (templates, presets, the shapes policy) do not count."""
    num_files: dict[Path, int] = {}
    for path in sources(room):
        if path.name != "__init__.py":
            num_files[path.parent] = num_files.get(path.parent, 0) + 1
    for folder, count in num_files.items():
        depth = len(folder.relative_to(ROOT).parts)
        assert count <= MAX_FILES, f"{short(folder)} holds {count} files"
        assert depth <= MAX_DEPTH, f"{short(folder)} is nested too deep"


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_stay_short(folder: str) -> None:
    long = []
    for path in sources(folder):
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                long.append(f"{short(path)}: {node.name} has {num_lines} lines")
    assert not long


# How plain a line is.


def test_lines_are_plain() -> None:
    """Syntax nodes per line of code over all rooms; docstrings, comments and blank lines are no code."""
    num_nodes = num_lines = 0
    for room in ROOMS:
        for path in sources(room):
            num_nodes += sum(1 for _ in ast.walk(tree_of(path)))
            num_lines += num_code_lines(path)
    density = num_nodes / num_lines
    assert density <= MAX_DENSITY, f"{density:.2f} syntax nodes per line"


def num_code_lines(path: Path) -> int:
    prose: set[int] = set()
    for node in ast.walk(tree_of(path)):
        if is_docstring(node):
            last = node.end_lineno or node.lineno
            prose.update(range(node.lineno, last + 1))
    count = 0
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        is_code = line.strip() and not line.strip().startswith("#")
        if is_code and number not in prose:
            count += 1
    return count


def is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    """A string that stands alone: the docstring of a module, class, function or constant."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_say_what_they_hold(folder: str) -> None:
    vague: list[str] = []
    for path in sources(folder):
        vague += vague_names(path)
    assert not vague, "\n".join(vague)


def vague_names(path: Path) -> list[str]:
    places: set[tuple[int, str]] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name):
            name: str | None = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ExceptHandler
        ):
            name = node.name
        else:
            continue
        if name in VAGUE_NAMES:
            places.add((node.lineno, name))
    return [f"{short(path)}:{line} {name}" for line, name in sorted(places)]


def test_tests_use_public_names() -> None:
    """A test that needs a private name depends on how the code does it, not on what it does."""
    private = re.compile(r"\b(?!self\.|cls\.|__)[a-z_]+\._[a-z]\w*")
    lines = []
    for path in sources("tests"):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if private.search(line):
                lines.append(f"{short(path)}:{number} {line.strip()}")
    assert len(lines) <= MAX_PRIVATE_LINES, "\n".join(lines)


# How light the commands are.

HEAVY = "{'torch', 'vllm', 'ray', 'deepspeed', 'transformers'} & set(sys.modules)"


def output_of(script: str) -> str:
    """What a script prints in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_is_light(module: str) -> None:
    """--help must not load torch, vllm, ray, deepspeed or transformers: that is what makes it answer in an instant."""
    output = output_of(
        "import runpy, sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', {HEAVY})\n"
    )
    assert output.startswith("usage:")
    assert output.rstrip().endswith("HEAVY set()")


def test_a_learner_without_adapters_does_without_peft() -> None:
    output = output_of(
        "import sys\n"
        "from common.config import Model\n"
        "from common.shapes.pretrain import DEFAULT_OUT\n"
        "from learner.learner import Learner\n"
        "from learner.model.policy import load_policy\n"
        "print(load_policy(Model(), DEFAULT_OUT).model.config.model_type)\n"
        "print({'peft', 'bitsandbytes'} & set(sys.modules))\n"
    )
    assert output.splitlines()[-2:] == ["llava", "set()"]


def test_a_dry_run_is_light_and_prints_every_actor() -> None:
    words = [
        "cluster/configs/llava16_7b_mixed.toml",
        "--dry-run",
        "--learner.num_ranks",
        "2",
    ]
    output = output_of(
        "import sys\n"
        "from cluster.train import main\n"
        f"status = main({words})\n"
        f"print('HEAVY', status, {HEAVY})\n"
    )
    head, *actors, total, heavy = output.splitlines()
    assert head.split() == ["actor", "CPUs", "GPUs", "holds"]
    num_gpus = {}
    for line in actors:
        name, _, gpus, *_ = line.split()
        num_gpus[name] = gpus
    assert num_gpus == {
        "rollout/0": "1",
        "rollout/1": "1",
        "rollout/2": "1",
        "rollout/3": "1",
        "reward/0": "0",
        "learner/0": "1",
        "learner/1": "1",
    }
    assert total.split()[:3] == ["total", "48", "6"]
    assert heavy == "HEAVY 0 set()"


def test_workers_are_called_by_typed_clients_only() -> None:
    """`handle.call("method", …)` stands in one file; everything else calls a method of a client."""
    callers: set[str] = set()
    for room in ROOMS:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in HANDLE_METHODS:
                    callers.add(path.name)
    # A seat passes calls on.
    assert callers == {"clients.py", "seat.py"}
