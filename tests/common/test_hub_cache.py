"""A Hugging Face cache in place of the data: its snapshot is read, or one line lists what there is to choose from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.import_data import main
from common.errors import UserError
from common.reading.hub_cache import snapshot_of
from tests.common.importer_cases import ANSWERS, PICTURE

COMMITS = ("0a1b", "9f8e")


def make_cache(hub: Path, name: str, commits: tuple[str, ...] = COMMITS) -> Path:
    """A repository of a data set as `huggingface_hub` lays it out; row n of a commit asks about its commit."""
    repository = hub / f"datasets--org--{name}"
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "picture").write_bytes(PICTURE)
    for commit in commits:
        row = {"image": "images/a.png", "prompt": f"Of {commit}?", **ANSWERS}
        (blobs / commit).write_text(json.dumps(row) + "\n")
        snapshot = repository / "snapshots" / commit
        (snapshot / "images").mkdir(parents=True)
        (snapshot / "images" / "a.png").symlink_to("../../../blobs/picture")
        (snapshot / "rows.jsonl").symlink_to(f"../../blobs/{commit}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[-1])
    return repository


@pytest.mark.parametrize("folder", ["", "hub", "hub/datasets--org--x", "hub/datasets--org--x/snapshots"])  # fmt: skip
def test_the_snapshot_of_main_is_read(folder: str, tmp_path: Path) -> None:
    """HF_HOME, its hub, the data set's folder, its snapshots; models beside it are no data."""
    repository = make_cache(tmp_path / "hub", "x")
    (tmp_path / "hub" / "models--org--x" / "snapshots" / "1").mkdir(parents=True)
    snapshot = snapshot_of(tmp_path / folder, "PATH")
    assert snapshot == repository / "snapshots" / COMMITS[1]


def test_other_paths_stay_as_they_are(tmp_path: Path) -> None:
    repository = make_cache(tmp_path / "hub", "x")
    for path in (
        repository / "snapshots" / COMMITS[0],
        repository / "snapshots" / COMMITS[0] / "rows.jsonl",
        repository / "blobs",
        tmp_path / "nowhere",
    ):
        assert snapshot_of(path, "PATH") == path
    (tmp_path / "mine" / "snapshots").mkdir(parents=True)
    assert snapshot_of(tmp_path / "mine", "PATH") == tmp_path / "mine"


def test_the_only_snapshot_needs_no_reference(tmp_path: Path) -> None:
    repository = make_cache(tmp_path, "x", ("0a1b",))
    (repository / "refs" / "main").unlink()
    assert snapshot_of(repository, "PATH") == repository / "snapshots" / "0a1b"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        snapshot_of(path, "--images")
    message = str(error.value)
    assert message.startswith("--images: expected ") and "\n" not in message
    return message


@pytest.mark.parametrize("main_commit", [None, "5c5c"])
def test_an_open_choice_lists_the_snapshots(
    main_commit: str | None, tmp_path: Path
) -> None:
    """Two snapshots and no `main`, or one that was not fetched."""
    repository = make_cache(tmp_path, "x")
    (repository / "refs" / "main").unlink()
    if main_commit:
        (repository / "refs" / "main").write_text(main_commit)
    message = refusal(repository)
    for commit in COMMITS:
        assert str(repository / "snapshots" / commit) in message


def test_several_data_sets_are_listed_and_none_fetched_is_said(tmp_path: Path) -> None:
    first, second = (make_cache(tmp_path, name) for name in "xy")
    assert f"a cache of 2; give one of {first}, {second}" in refusal(tmp_path)
    empty = tmp_path / "datasets--org--z"
    (empty / "snapshots").mkdir(parents=True)
    assert "got none; fetch the data set again" in refusal(empty)


def test_an_import_of_a_cache_is_that_of_its_snapshot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, both snapshots' rows were read, and every image was missing. `--images` may be a cache as well."""
    repository = make_cache(tmp_path / "hub", "x")
    snapshot = repository / "snapshots" / COMMITS[1]
    ways = {
        "root": [str(tmp_path / "hub")],
        "images": [str(snapshot / "rows.jsonl"), "--images", str(repository)],
        "snapshot": [str(snapshot)],
    }
    sets = []
    for name, words in ways.items():
        out = tmp_path / name
        assert main(["mm_rlhf", *words, "--out", str(out)]) == 0
        sets.append((out / "pairs.parquet").read_bytes())
    assert sets[0] == sets[1] == sets[2]
    said = capsys.readouterr().out
    assert f"{tmp_path / 'hub'} is a hub cache: reading {snapshot}" in said
    assert f"{repository} is a hub cache: images are below {snapshot}" in said
