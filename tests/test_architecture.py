"""The import rule common <- {actors, reward, learner} <- cluster, one home per heavy import, light entry points."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "common": {"common"},
    "actors": {"common", "actors"},
    "reward": {"common", "reward"},
    "learner": {"common", "learner"},
    "cluster": {"common", "actors", "reward", "learner", "cluster"},
}
HEAVY_HOME = {
    "vllm": "actors/vllm_api.py",
    "deepspeed": "learner/deepspeed_engine.py",
    "ray": "cluster/ray_runtime.py",
}
HANDLE_METHODS = {"call", "call_split"}
ENTRY_POINTS = [
    "cluster.train",
    "cluster.generate",
    "cluster.evaluate",
    "cluster.doctor",
    "cluster.report",
    "cluster.import_data",
]


def sources(room: str) -> Iterator[Path]:
    return (
        path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts
    )


def imports(path: Path) -> Iterator[str]:
    """Every module named by an import statement, anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    rooms = set(MAY_IMPORT) | {"tests", "benchmarks"}
    seen = 0
    for path in sources(room):
        seen += 1
        found = {name.split(".")[0] for name in imports(path)} & rooms
        assert found <= MAY_IMPORT[room], f"{path} imports {found - MAY_IMPORT[room]}"
    assert seen


@pytest.mark.parametrize(("package", "home"), HEAVY_HOME.items())
def test_heavy_packages_are_imported_in_one_file(package: str, home: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for room in MAY_IMPORT
        for path in sources(room)
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert found == {home}


def test_no_import_cycles() -> None:
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): set(imports(path))
        for room in MAY_IMPORT
        for path in sources(room)
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join((*path, module))}"
        if module in graph and module not in done:
            for name in graph[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert len(done) == len(graph)


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_is_light(module: str) -> None:
    """--help must not load torch, vllm, ray, deepspeed or transformers: that is what makes it answer in an instant."""
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', {'torch', 'vllm', 'ray', 'deepspeed', 'transformers'} & set(sys.modules))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith("usage:")
    assert answer.stdout.rstrip().endswith("HEAVY set()")


def test_a_dry_run_is_light_and_prints_every_actor() -> None:
    script = (
        "import sys\n"
        "from cluster.train import main\n"
        "status = main(['cluster/configs/llava16_7b_mixed.toml', '--dry-run', '--learner.num_ranks', '2'])\n"
        "print('HEAVY', status, {'torch', 'vllm', 'ray', 'deepspeed', 'transformers'} & set(sys.modules))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    head, *actors, total, heavy = answer.stdout.splitlines()
    assert head.split() == ["actor", "CPUs", "GPUs", "holds"]
    gpus = {line.split()[0]: line.split()[2] for line in actors}
    assert gpus == {
        **{f"rollout/{i}": "1" for i in range(4)},
        "reward/0": "0",
        "learner/0": "1",
        "learner/1": "1",
    }
    assert total.split()[:3] == ["total", "48", "6"]
    assert heavy == "HEAVY 0 set()"


def test_workers_are_called_by_typed_clients_only() -> None:
    """`handle.call("method", …)` stands in one file; everything else calls a method of a client."""
    callers = set()
    for room in MAY_IMPORT:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in HANDLE_METHODS:
                    callers.add(path.relative_to(ROOT).as_posix())
    assert callers == {"cluster/clients.py"}


def test_functions_stay_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for room in MAY_IMPORT
        for path in sources(room)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > 80
    ]
    assert not long
