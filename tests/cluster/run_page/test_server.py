"""What the server gives away: one run to its owner on this machine, and nothing else.

The commands of docs/howto/run_page.md are run here and in test_files.py.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cluster.report import PORT, main
from cluster.run_page.run import RunPage
from cluster.run_page.server import HOST, PageServer, app_of
from common.errors import UserError
from tests.cluster.run_page.written_runs import write_run
from tests.docs.pages import DOCS, ROOT, blocks

ASSETS = ("page.css", "load_live.js", "plots.js", "pairs.js", "page.js")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPage]:
    with RunPage(write_run(tmp_path_factory.mktemp("runs") / "run")) as run:
        run.store.read_all()
        yield run


@pytest.fixture
def client(page: RunPage) -> TestClient:
    return TestClient(app_of(page, "secret"), base_url=f"http://{HOST}/secret/")


def test_page_assets_and_views(client: TestClient) -> None:
    start = client.get("")
    assert start.status_code == 200
    assert start.headers["content-type"].startswith("text/html")
    for name in ASSETS:
        assert client.get(f"assets/{name}").status_code == 200
        assert f"assets/{name}" in start.text
    assert client.get("views/overview").json()["step"] == 10
    assert (
        client.get("views/pairs", params={"what": "dropped:tie"}).json()["total"] == 10
    )


def test_nothing_of_it_may_load_or_send_anything_elsewhere(client: TestClient) -> None:
    for path in ("", "views/overview", "assets/page.js", "views/none"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "connect-src 'self'" in policy and "unsafe-eval" not in policy
    assert client.get("").headers["referrer-policy"] == "no-referrer"


def test_without_the_secret_there_is_nothing(page: RunPage) -> None:
    client = TestClient(app_of(page, "secret"), base_url=f"http://{HOST}")
    for path in (
        "/",
        "/views/overview",
        "/Secret/",
        "/secret2/",
        "/secre/views/overview",
    ):
        assert client.get(path).status_code == 404


def test_a_page_of_another_name_that_leads_here_gets_nothing(page: RunPage) -> None:
    """DNS rebinding: the browser believes to be at home with evil.example."""
    client = TestClient(app_of(page, "secret"), base_url="http://evil.example/secret/")
    assert client.get("views/overview").status_code == 400


@pytest.mark.parametrize(
    "name",
    [
        "../config.json",
        "..%2f..%2fconfig.json",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "page.html/../../store.py",
        "server.py",
    ],
)
def test_no_name_is_a_path(client: TestClient, name: str) -> None:
    for folder in ("assets", "pictures", "views"):
        answer = client.get(f"{folder}/{name}")
        assert answer.status_code in (400, 404), (folder, name)
        assert "global_batch" not in answer.text and "root:" not in answer.text


def test_pictures_are_those_of_the_run(
    client: TestClient, page: RunPage, tmp_path: Path
) -> None:
    (sha256, *_) = page.view("pairs", {})["items"][0]["pictures"]
    picture = client.get(f"pictures/{sha256}.webp")
    assert picture.headers["content-type"] == "image/webp"
    assert client.get(f"pictures/{'0' * 64}.webp").status_code == 404
    assert client.get(f"pictures/{sha256[:10]}.webp").status_code == 404


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (picture, *_) = (run_dir / "pairs" / "images").rglob("*.png")
    outside = tmp_path / "outside.png"
    picture.rename(outside)
    picture.symlink_to(outside)
    with RunPage(run_dir) as run:
        client = TestClient(app_of(run, "s"), base_url=f"http://{HOST}/s/")
        answer = client.get(f"pictures/{picture.stem}.webp")
    assert (answer.status_code, answer.text) == (404, "image_missing")


def test_a_picture_that_is_none_is_refused(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (picture, *_) = (run_dir / "pairs" / "images").rglob("*.png")
    picture.write_bytes(b"<svg onload='alert(1)'/>")
    with RunPage(run_dir) as run:
        client = TestClient(app_of(run, "s"), base_url=f"http://{HOST}/s/")
        answer = client.get(f"pictures/{picture.stem}.webp")
    assert (answer.status_code, answer.text) == (404, "image_changed")


def test_it_only_reads(client: TestClient) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("views/overview").status_code == 405


@pytest.mark.parametrize(
    ("view", "name", "word"),
    [
        ("pairs", "step_from", "<script>"),
        ("pairs", "page", "inf"),
        ("pairs", "margin_from", "nan"),
        ("timeline", "begin", "nan"),
        ("timeline", "end", "-inf"),
    ],
)
def test_bad_words_get_one_line(
    client: TestClient, view: str, name: str, word: str
) -> None:
    answer = client.get(f"views/{view}", params={name: word})
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.startswith(f"{name}: expected a finite number, got '{word}'")
    assert "\n" not in answer.text


def test_an_index_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the disk is full: what would come later has gaps, so the page follows no further."""
    with RunPage(write_run(tmp_path / "run")) as run:
        run.store.ask("drop table items")
        with pytest.raises(UserError, match="expected room for the page's index, got"):
            run.store.update()
    with RunPage(write_run(tmp_path / "other")) as run:
        run.store.ask("drop table items")
        with PageServer(run, 0):
            wait_for(lambda: "follows the run no further" in caplog.text)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_text_with_a_null_is_searched_for_without_it(client: TestClient) -> None:
    answer = client.get("views/pairs", params={"text": "red\0 dog 5."})
    assert (answer.status_code, answer.json()["total"]) == (200, 1)


def test_a_real_server_listens_on_this_machine_alone(page: RunPage) -> None:
    with PageServer(page, 0) as server:
        assert server.url.startswith(f"http://{HOST}:")
        with urllib.request.urlopen(f"{server.url}views/overview") as answer:
            assert b'"step":10' in answer.read()
        bare = server.url.rpartition("/")[0].rpartition("/")[0]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{bare}/views/overview")
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(UserError, match=f"got {port}"):
            PageServer(page, port)


def test_the_served_command_of_the_page_ends_with_one_line(tmp_path: Path) -> None:
    """As docs/howto/run_page.md has it, on any free port: started, asked, interrupted."""
    (block,) = [
        block
        for block in blocks(DOCS / "howto" / "run_page.md")
        if "--serve --against" in block.text
    ]
    for name in ("demo", "other"):
        write_run(tmp_path / "runs" / name, 8)
    (command,) = [line for line in block.commands if "--against" in line]
    words = [sys.executable, *shlex.split(command)[1:], "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        head, url, *_ = said.split()
        assert head == "look:" and url.startswith(f"http://{HOST}:")
        with urllib.request.urlopen(f"{url}views/settings", timeout=60) as answer:
            assert json.load(answer)["against"] == "other"
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert (server.returncode, rest, errors) == (130, "", "interrupted\n")


def test_every_command_of_the_page_is_known_here() -> None:
    """The others of the block: `--serve` alone is the one above, `--page` is run in test_files.py."""
    (block,) = [
        block for block in blocks(DOCS / "howto" / "run_page.md") if block.mark == "by"
    ]
    assert block.commands == [
        "python -m cluster.report runs/demo --serve",
        "python -m cluster.report runs/demo --page",
        "python -m cluster.report runs/demo --serve --against runs/other",
    ]
    text = (DOCS / "howto" / "run_page.md").read_text()
    assert f"ssh -L {PORT}:{HOST}:{PORT} HOST" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "RUN", "--serve"], "expected one run"),
        (["RUN", "--serve", "--page"], "expected one of them"),
        (["nowhere", "--serve"], "expected the config of a run"),
        (["RUN", "--serve", "--against", "nowhere"], "expected the config of a run"),
    ],
)
def test_the_command_says_what_is_wrong(
    page: RunPage, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(page.run_dir) if word == "RUN" else word for word in words]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
