"""The blocks of code of the documents, and how a test marks what it does not run itself.

A comment in the line before a block says who runs it:

    <!-- by tests/test_second_world.py -->    that test reads the commands from the page, or names the page
    <!-- gpu: why -->   <!-- data: why -->   <!-- once: why -->   needs a GPU, a published set, a fresh machine

Every other block of `bash` and `python` is run by `test_pages.py`. A Python block with a title is a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MARK = re.compile(r"<!-- (by|gpu|data|once)(?::? (.*?))? -->")
FENCE = re.compile(r'```(\w*)(?: title="(.*)")?')
IS_COMMAND = re.compile(
    r"^\s*(?:\S*python -m|make|ray|sbatch|docker|kubectl|hf|tensorboard) "
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code.

    Attributes:
        language: of the fence, "" where it has none.
        title: the file that it is, or "".
        mark: `by`, `gpu`, `data`, `once`, or "" where nothing is said.
        note: what stands behind the mark.
    """

    page: Path
    language: str
    title: str
    text: str
    mark: str
    note: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell, continued ones joined, comments left out."""
        joined = self.text.replace("\\\n", " ")
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def has_commands(self) -> bool:
        return any(IS_COMMAND.match(line) for line in self.text.splitlines())


def pages() -> list[Path]:
    """Every page of the site that is written by hand."""
    return sorted(DOCS.rglob("*.md"))


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    mark = note = ""
    start: int | None = None
    language = title = ""
    for number, line in enumerate(lines):
        if start is not None:
            if line.strip() == "```":
                text = "\n".join(lines[start:number])
                yield Block(page, language, title, text, mark, note)
                start, mark, note = None, "", ""
            continue
        fence = FENCE.fullmatch(line.strip())
        comment = MARK.fullmatch(line.strip())
        if fence is not None:
            language, title, start = fence[1], fence[2] or "", number + 1
        elif comment is not None:
            mark, note = comment[1], comment[2] or ""
        elif line.strip():
            mark = note = ""


def block_with(page: Path, word: str) -> Block:
    """The one block of a page that holds a word, for the test that runs it."""
    (block,) = [block for block in blocks(page) if word in block.text]
    return block
