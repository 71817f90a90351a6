"""The run page in a real headless Chromium: served, and opened from disk.

It needs the packages `playwright` and `axe-playwright-python`, and a Chromium: the machine's (`apt-get install
chromium`), or the one that SIGHTLINE_CHROMIUM names. Without them these tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run_page import chromium
from cluster.run_page.files import write_page
from cluster.run_page.run import RunPage
from cluster.run_page.server import PageServer
from tests.cluster.run_page.written_runs import BEGAN, HOSTILE, write_run

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe is not installed: pip install axe-playwright-python",
)
SIZES = (1400, 400)
PLOTS = ("#curves", "#timeline", "#drops", "#probe", "#flow", "#grounding")
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as tools:
        # As root it does not start within its sandbox.
        launched = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def served(run_dir: Path) -> Iterator[str]:
    with RunPage(run_dir) as run, PageServer(run, 0) as server:
        run.store.read_all()
        yield server.url


@contextmanager
def written(run_dir: Path) -> Iterator[str]:
    with RunPage(run_dir) as run:
        yield write_page(run, run_dir / "report").as_uri()


KINDS = {"served": served, "from disk": written}


@contextmanager
def opened(
    browser: Any, url: str, width: int = 1400, scheme: str = "light"
) -> Iterator[Any]:
    """The page; an error in its console, or a file that does not come, fails the test."""
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(url, wait_until="commit")
    try:
        page.wait_for_selector("#scores .content > *")
        yield page
    finally:
        context.close()
    assert complaints == []


def scroll_through(page: Any) -> None:
    """See every section, as a reader would; what is drawn lazily is there afterwards."""
    for section in page.query_selector_all("section"):
        section.scroll_into_view_if_needed()
        page.wait_for_timeout(50)
    page.wait_for_selector("#list article")
    for section in PLOTS:
        page.locator(f"{section} .plot").first.scroll_into_view_if_needed()
        page.wait_for_selector(f"{section} .plot[data-drawn]")


def shown_ids(page: Any) -> list[str]:
    return [
        item.get_attribute("aria-label")
        for item in page.query_selector_all("#list article")
    ]


def count(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.getElementById('found').textContent.startsWith(text)",
        arg=text,
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_plots_are_drawn_and_pictures_shown(
    browser: Any, run_dir: Path, kind: str
) -> None:
    with KINDS[kind](run_dir) as url, opened(browser, url) as page:
        scroll_through(page)
        assert page.title() == "run: step 10"
        for plot in page.query_selector_all("#curves > .plots .plot[data-drawn]"):
            assert plot.query_selector("svg .trace path"), plot.get_attribute(
                "aria-label"
            )
        picture = page.locator("#list img").first
        picture.scroll_into_view_if_needed()
        page.wait_for_function(
            "picture => picture.naturalWidth > 0", arg=picture.element_handle()
        )
        marks = page.locator("#list article").first.locator("mark")
        assert marks.all_inner_texts() == ["red dog", "blue cat"]
        lanes = page.locator("#timeline td").all_inner_texts()
        # 40 s of one judgement of a quarter of a second every second.
        assert lanes[2:4] == ["reward/0", "75 %"]


@pytest.mark.parametrize("kind", KINDS)
def test_filter_search_and_pages(browser: Any, run_dir: Path, kind: str) -> None:
    with KINDS[kind](run_dir) as url, opened(browser, url) as page:
        page.locator("#pairs").scroll_into_view_if_needed()
        count(page, "40 hits")
        page.click("#next")
        page.wait_for_function(
            "() => document.getElementById('page-number').textContent === 'page 2 of 2'"
        )
        assert shown_ids(page)[-1] == "0:prompt/0"
        page.fill("[name=text]", "RED DOG 17")
        count(page, "1 hit")
        assert shown_ids(page) == ["0:prompt/17"]
        page.fill("[name=text]", "")
        page.fill("[name=step_from]", "3")
        page.fill("[name=step_to]", "4")
        count(page, "8 hits")
        page.select_option("[name=source]", "rloo")
        count(page, "4 hits")
        page.fill("[name=margin_from]", "2.3")
        count(page, "1 hit")
        assert shown_ids(page) == ["0:prompt/14"]
        page.click("button[type=reset]")
        count(page, "40 hits")
        page.select_option("[name=order]", "margin_low")
        page.wait_for_function(
            "() => document.querySelector('#list article').ariaLabel === '0:prompt/0'"
        )
        page.click("#drops button.link")
        count(page, "10 hits")
        assert "scores 1 to 1" in page.inner_text("#list")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_model_says_becomes_markup(
    browser: Any, tmp_path: Path, kind: str
) -> None:
    run_dir = write_run(tmp_path / "run", 8, [HOSTILE])
    for name in ("metrics.jsonl", "journal/events.jsonl"):
        path = run_dir / name
        hostile = json.dumps(HOSTILE)[1:-1]
        # Names of metrics and reasons may come from a user's judge.
        text = (
            path.read_text()
            .replace("loss/online", hostile)
            .replace('"tie"', f'"{hostile}"')
        )
        path.write_text(text)
    with KINDS[kind](run_dir) as url, opened(browser, url) as page:
        scroll_through(page)
        assert HOSTILE in page.locator("#list .said").first.inner_text()
        page.click("#drops button.link")
        count(page, "2 hits")
        assert page.evaluate("window.hacked") is None
        assert (
            page.query_selector_all("main script, main b:not(.fact b):not(.tags b)")
            == []
        )
        assert page.query_selector_all("img[src=x]") == []


def test_news_of_a_run_that_goes_on_come_by_themselves(
    browser: Any, tmp_path: Path
) -> None:
    run_dir = write_run(tmp_path / "run")
    journal = run_dir / "journal" / "events.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    # Up to the last step but one.
    cut = [at for at, line in enumerate(lines) if '"event": "step"' in line][-2]
    journal.write_text("".join(lines[: cut + 1]))
    with served(run_dir) as url, opened(browser, url) as page:
        page.wait_for_selector("text=step 9 of 10")
        with journal.open("a") as file:
            file.writelines(lines[cut + 1 :])
        page.wait_for_selector("text=step 10 of 10")
        assert page.inner_text("#state") == "ended"


def test_keys(browser: Any, run_dir: Path) -> None:
    with served(run_dir) as url, opened(browser, url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.hash") == "#now"
        for _ in range(5):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#list article")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.ariaLabel") == "0:prompt/39"
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.ariaLabel") == "0:prompt/38"
        page.keyboard.press("/")
        page.keyboard.type("red dog 5")
        count(page, "1 hit")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_it_is_readable_at_any_width_and_in_the_dark(
    browser: Any, run_dir: Path, width: int, scheme: str
) -> None:
    """axe looks at contrast (WCAG AA), labels, names and roles."""
    with served(run_dir) as url, opened(browser, url, width, scheme) as page:
        scroll_through(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # The plots' own drawing is hidden from readers of the screen, who get a sentence.
        report = axe.Axe().run(page, context={"exclude": [[".plot"]]})
        assert report.violations_count == 0, report.generate_report()


@pytest.mark.slow
def test_a_hundred_thousand_pairs(browser: Any, tmp_path: Path) -> None:
    """How long it takes is measured by benchmarks/run_page.py: here the machine may have other work."""
    large_run = write_run(tmp_path / "run", num_pairs=100_000, num_pictures=50)
    with served(large_run) as url, opened(browser, url) as page:
        page.wait_for_selector("#curves .plot[data-drawn]")
        page.locator("#pairs").scroll_into_view_if_needed()
        count(page, "100,000 hits")
        page.fill("[name=text]", "red dog 99999.")
        count(page, "1 hit")
        assert len(shown_ids(page)) == 1


def test_before_the_first_step_the_page_says_so(browser: Any, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (run_dir / "metrics.jsonl").unlink()
    start = {"event": "start", "time": BEGAN, "workers": []}
    (run_dir / "journal" / "events.jsonl").write_text(json.dumps(start) + "\n")
    with served(run_dir) as url, opened(browser, url) as page:
        page.wait_for_selector("text=Nothing is measured yet.")
        page.wait_for_selector("text=silent")
