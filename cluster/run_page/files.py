"""The run page as a folder that opens from disk: `python -m cluster.report RUN_DIR --page [FOLDER]`.

report.html   assets/   data/VIEW.js   data/pairs.js (what filters need)   data/pairs_0000.js …   pictures/
sightline_page.txt, by which the next page knows a folder that it may replace

Browsers let a page from disk load scripts, not JSON: every data file is a script that hands its JSON over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.progress import ProgressReport
from cluster.run_page.pairs import (
    COLUMNS,
    ENDED_AT,
    SHOWN_CHARACTERS,
    choices,
    shown,
)
from cluster.run_page.run import VIEWS, RunPage
from cluster.run_page.server import ASSETS, PLOTLY
from common.errors import Refused, UserError
from common.paths import replace_directory

PER_FILE = 100
"""Pairs of a data file."""
MAX_PAIRS = 100_000
"""The newest ones are written."""
DROPS_OF_A_REASON = 50
"""Examples of every reason, the newest ones; all are counted."""
REPORT = "report.html"
MARKER = "sightline_page.txt"
"""A folder with this file is a page of ours, which the next one may replace."""
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'self' file:; "
    "style-src 'self' file: 'unsafe-inline'; img-src 'self' file: data: blob:; base-uri 'none'; form-action 'none'\">"
)
INDEX_COLUMNS = f"source, reason, {ENDED_AT}, step is not null, margin"
ROW_AT = f"select {INDEX_COLUMNS}, {COLUMNS} from items where place = ?"
FROM_DISK = ("page.css", "page.js", "plots.js", "pairs.js", "load_files.js", PLOTLY)
"""The files of the page beside its HTML."""


def write_page(run: RunPage, folder: Path) -> Path:
    """Write the whole page; returns the file to open.

    Raises:
        UserError: the folder holds something that is no such page.
    """
    _check_replaceable(folder, run.run_dir)
    run.store.read_all()
    with replace_directory(folder) as partial:
        _write_assets(partial)
        (partial / "data").mkdir()
        for name in VIEWS:
            if name != "pairs":
                _write_data(partial, name, run.view(name, {}))
        _write_pairs(run, partial)
    return folder / REPORT


def _check_replaceable(folder: Path, run_dir: Path) -> None:
    """Refuse a folder whose loss would be one: all that is in it goes."""
    holds_run = run_dir.resolve().is_relative_to(folder.resolve())
    if holds_run or (folder / "config.json").exists():
        raise UserError(
            f"--page: expected a folder without a run, got {folder}; choose another"
        )
    is_ours = (folder / MARKER).exists()
    if folder.exists() and any(folder.iterdir()) and not is_ours:
        raise UserError(
            f"--page: expected an empty folder or an earlier page, got {folder}; choose another"
        )


def _write_assets(folder: Path) -> None:
    marker = "Written by `python -m cluster.report RUN_DIR --page`, which replaces this folder.\n"
    (folder / MARKER).write_text(marker, encoding="utf-8")
    (folder / "assets").mkdir()
    for name in FROM_DISK:
        shutil.copyfile(ASSETS / name, folder / "assets" / name)
    html = (ASSETS / "page.html").read_text(encoding="utf-8")
    html = html.replace("load_live.js", "load_files.js")
    html = html.replace("<head>", f"<head>\n{POLICY}")
    (folder / REPORT).write_text(html, encoding="utf-8")


def _write_data(folder: Path, name: str, value: Any) -> None:
    # As ASCII, so that no text of a model ends a line of the script.
    script = f"receive({json.dumps(name)}, {json.dumps(value)});\n"
    (folder / "data" / f"{name}.js").write_text(script, encoding="ascii")


def _write_pairs(run: RunPage, folder: Path) -> None:
    places = _places(run)
    run.written.update()
    index: list[Sequence[Any]] = []
    pictures: set[str] = set()
    (folder / "pictures").mkdir()
    with ProgressReport("pairs of the page", len(places)) as progress:
        for number, of_file in enumerate(_parts(places)):
            items: list[dict[str, Any]] = []
            for place in of_file:
                (row,) = run.store.ask(ROW_AT, (place,))
                index.append(row[:5])
                items.append(shown(run.store, run.written, row[5:]))
                for sha256 in items[-1]["pictures"]:
                    _write_picture(run, folder, sha256, pictures)
                progress.advance()
            _write_data(folder, f"pairs_{number:04d}", items)
    content = {
        "per_file": PER_FILE,
        "rows": index,
        "num_pairs": choices(run.store)["pairs"],
        "most_pairs": MAX_PAIRS,
        "most_drops": DROPS_OF_A_REASON,
        "most_characters": SHOWN_CHARACTERS,
    }
    _write_data(folder, "pairs", content)


def _places(run: RunPage) -> list[int]:
    """What is written: the newest pairs, and the newest drops of every reason; newest first."""
    pairs = run.store.ask(
        "select place from items where reason = '' order by place desc limit ?",
        (MAX_PAIRS,),
    )
    drops = run.store.ask(
        "select place from (select place, row_number() over (partition by reason order by place desc) as number "
        "from items where reason != '') where number <= ?",
        (DROPS_OF_A_REASON,),
    )
    return sorted((row[0] for row in (*pairs, *drops)), reverse=True)


def _parts(places: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(places), PER_FILE):
        yield places[begin : begin + PER_FILE]


def _write_picture(run: RunPage, folder: Path, sha256: str, written: set[str]) -> None:
    if sha256 in written:
        return
    written.add(sha256)
    with suppress(Refused):
        content = run.pictures.encoded(sha256)
        (folder / "pictures" / f"{sha256}.webp").write_bytes(content)
