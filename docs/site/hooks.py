"""What MkDocs calls while it builds the site: pages that are generated, not written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.site.reference import reference

NOTEBOOK = "pictures_to_scorecard.ipynb"
NEEDS = re.compile(r"^<!-- (?:gpu|data): (.*) -->$", re.MULTILINE)
"""The mark of a block that no test runs whole, see tests/docs/pages.py."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference of all keys, and the notebook as a page."""
    notebook = Path(config.docs_dir) / NOTEBOOK
    pages = {
        "reference/config.md": reference(),
        "notebook.md": notebook_page(notebook.read_text(encoding="utf-8")),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Tell the reader what a command needs that the tests do not have."""
    return NEEDS.sub(r"*Needs \1.*\n", markdown)


def notebook_page(text: str) -> str:
    """A notebook's cells as Markdown, with a link to the file."""
    parts: list[str] = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = f"```python\n{source}\n```"
        parts.append(source)
    title, *rest = parts
    link = f"[Download the notebook]({NOTEBOOK}); a test runs it whole."
    return "\n\n".join([title, link, *rest]) + "\n"
