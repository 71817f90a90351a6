"""Every block of code of the site is run: here, on light workers, or by the test that a mark names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.light_commands import Scratch
from tests.docs.pages import DOCS, ROOT, Block, blocks, pages

BY_HAND = {
    "benchmarks.md": "measured by hand; tests/benchmarks runs each small",
    "cluster.md": "needs GPUs or several nodes; tests/docs checks its files and sizes",
    "harm.md": "measured by hand",
    "models.md": "tests/families",
    "paper_table.md": "measured by hand; tests/benchmarks/test_paper_table.py",
    "reliability.md": "tests/chaos",
    "scale.md": "measured by hand; tests/benchmarks/test_controller_scale.py",
}
"""Pages whose commands take long or need machines. Their words are checked in test_commands.py."""
RUN_HERE = ("bash", "python")


def is_run_here(block: Block) -> bool:
    return block.language in RUN_HERE and not block.mark


def light_pages() -> list[Path]:
    return [page for page in pages() if any(map(is_run_here, blocks(page)))]


@pytest.mark.parametrize("page", light_pages(), ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path, monkeypatch)
    for block in blocks(page):
        if is_run_here(block):
            scratch.run(block)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_command_has_somebody_who_runs_it(page: Path) -> None:
    for block in blocks(page):
        if not block.has_commands or page.name in BY_HAND:
            continue
        assert is_run_here(block) or block.mark, block.text
        if block.mark == "by":
            runner = ROOT / block.note
            assert page.name in runner.read_text(), f"{runner} does not name {page}"
        elif block.mark:
            assert block.note, f"{page.name}: {block.mark} says no reason"


def test_the_pages_are_found() -> None:
    names = {page.relative_to(DOCS).as_posix() for page in light_pages()}
    assert {"tutorial.md", "howto/loss.md", "howto/python.md"} <= names
