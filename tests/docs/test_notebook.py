"""The notebook, run whole on real parts: Ray, a vLLM engine and a DeepSpeed learner, from a kernel of its own."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from docs.site.hooks import NOTEBOOK, notebook_page
from tests.docs.light_commands import LINKED
from tests.docs.pages import DOCS, ROOT

PATH = DOCS / NOTEBOOK


@pytest.mark.real
@pytest.mark.long
def test_the_notebook_runs_from_pictures_to_a_scorecard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    # Ray's workers start elsewhere.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(PATH, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=400, resources=resources).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert "win rate" in printed
    assert "chosen:" in printed
    run = tmp_path / "runs" / "notebook" / "run"
    card = json.loads((run / "scorecard.json").read_text())
    metrics = card["final"]["suites"]["prompts"]["metrics"]
    assert 0 <= metrics["win_rate"]["value"] <= 1
    assert (run / "policy" / "config.json").exists()


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads(PATH.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_its_page_has_all_of_its_cells() -> None:
    page = notebook_page(PATH.read_text())
    assert page.startswith("# From pictures to a scorecard\n")
    assert f"]({NOTEBOOK})" in page
    assert page.count("```python\n") == 6
    assert "run = train(config, resume=True)" in page
