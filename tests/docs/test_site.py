"""The site builds strictly, and nothing in it leads nowhere. Names of keys and of other libraries are right."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from common.command_line.keys import keys_of
from common.config import RunConfig
from tests.docs.pages import DOCS, ROOT, pages

LINKS = {"a": "href", "img": "src", "link": "href", "script": "src"}
COMING_FROM = DOCS / "coming_from.md"


class Page(HTMLParser):
    """What a built page links to, and what in it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        values = dict(attributes)
        link = values.get(LINKS.get(tag, ""))
        if link:
            self.links.append(link)
        self.ids.update(filter(None, (values.get("id"), values.get("name"))))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, elsewhere."""
    out = tmp_path_factory.mktemp("site")
    # Not --quiet: what is not logged is no warning, and strict then means nothing.
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    answer = subprocess.run(
        [*words, "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return out


def test_every_link_leads_somewhere(site: Path) -> None:
    """Files, pictures and places in pages. What is elsewhere is not asked: the tests have no network."""
    parsed = {path: Page(path) for path in site.rglob("*.html")}
    assert len(parsed) > 25
    broken: list[str] = []
    for path, page in parsed.items():
        if path.name == "404.html":
            # Its links are absolute: it may be shown anywhere.
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "mailto"), f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = target if parts.path else path
            place = unquote(parts.fragment)
            places = parsed[target].ids if target in parsed else {place}
            if not target.exists() or (place and place not in places):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """The site opens from disk, and tells nobody who reads it."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?:[^\s\">]+)", text
        )
        assert [address for address in loaded if "canonical" not in address] == []


def test_the_reference_pages_have_what_they_promise(site: Path) -> None:
    config = Page(site / "reference" / "config.html")
    assert {"learner.loss.beta", "evaluation.suites", "evaluate.policy"} <= config.ids
    python = Page(site / "reference" / "python.html")
    functions = ("settings", "train", "generate", "evaluate")
    assert {f"cluster.library.{name}" for name in functions} <= python.ids
    assert "common.records.PreferencePair" in python.ids
    assert (site / "search" / "search_index.json").exists()


def test_a_command_that_needs_more_says_so(site: Path) -> None:
    page = (site / "howto" / "own_judge.html").read_text()
    assert "<em>Needs a judge of 34B parameters.</em>" in page


def test_links_of_the_readme_are_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / link).exists(), f"{name}: {link}"


# Names.


def known_names() -> set[str]:
    """All keys, sections and names on the way."""
    names: set[str] = set()
    for key in keys_of(RunConfig):
        for length in range(1, len(key.path) + 1):
            names.add(".".join(key.path[:length]))
    return names


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_keys_that_a_page_names_exist(page: Path) -> None:
    """`section.key` in backticks, with a value behind it or not."""
    known = known_names()
    text = page.read_text()
    if page == COMING_FROM:
        # Keys of others look like ours.
        text = " ".join(f"`{name}`" for name in cells(1))
    sections = "|".join(RunConfig.model_fields)
    pattern = rf"`(?:--)?((?:{sections})\.[a-z_.]+[a-z_])[`\s]"
    for name in re.findall(pattern, text):
        is_module = (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
        if is_module or name.endswith((".py", ".json", ".jsonl", ".md")):
            continue
        is_of_a_list = any(
            re.fullmatch(name.replace(".", r"\.(?:\w+\.)?"), key) for key in known
        )
        assert name in known or is_of_a_list, f"{page.name}: {name}"


def cells(column: int) -> list[str]:
    """The names in a column of the table of other libraries."""
    names: list[str] = []
    for line in COMING_FROM.read_text().splitlines():
        if line.startswith("| ") and line.count("|") == 7:
            names += re.findall(r"`([^`]+)`", line.split("|")[column + 1])
    return names


def test_trls_names_are_those_of_the_installed_trl() -> None:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.grpo_config import GRPOConfig

    settings = {field.name for field in dataclasses.fields(DPOConfig)}
    settings |= {field.name for field in dataclasses.fields(OnlineDPOConfig)}
    settings |= {field.name for field in dataclasses.fields(GRPOConfig)}
    settings |= set(OnlineDPOTrainer.__init__.__annotations__)
    settings |= {"images", "OnlineDPOConfig", "DPOConfig", "GRPOConfig"}
    names = [name.partition(" ")[0] for name in cells(2)]
    assert len(names) > 25
    assert [name for name in names if name not in settings] == []
