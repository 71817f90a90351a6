"""`python -m cluster.generate povid`: sets by rules and by an endpoint, whole or in parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actors.povid.injection import EndpointInjector, Injection, Row
from cluster.generate import config_of, main
from cluster.jobs.povid_job import run
from common.config.jobs import PovidJobConfig
from common.data.datasets import PAIRS, SPEC, read_pairs, write_prompts
from common.data.images import ImageStore
from common.records import Prompt
from common.shapes.prompts import caption_prompts, question_prompts
from tests.cluster.povid.sets import answering, from_file, rows_of, stats_of, words


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


def job(*line: str) -> PovidJobConfig:
    config = config_of(["povid", *line])
    assert isinstance(config, PovidJobConfig)
    return config


# Rules.

RULES = ("--corrupter", "rules")


def test_rules_make_a_set_of_the_shapes_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    assert main(["povid", "--out", str(out), *RULES, "--count", "60"]) == 0
    assert "60 pairs" in capsys.readouterr().out
    for pair in read_pairs(out):
        assert pair.source == "povid"
        assert pair.chosen.text != pair.rejected.text
    stats = stats_of(out)
    assert stats["num_prompts"] == 60
    assert stats["num_rows"] == 60
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 60
    for kind in ("entity", "attribute", "relation"):
        assert stats["pairs_per_kind"][kind] > 5
    # Rules cost nothing.
    assert "cost" not in stats


def test_a_complete_set_is_left_alone_and_another_is_not_mixed_into_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["povid", "--out", str(tmp_path / "a"), *RULES, "--count"]
    assert main([*line, "6"]) == 0
    assert "already complete" not in capsys.readouterr().out
    assert main([*line, "6"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main([*line, "7"]) == 2


def test_rows_of_every_sort_are_paired_or_counted(tmp_path: Path) -> None:
    """One row each, but two questions: a caption, no answer, a false one, a 10 MB one, an image that is gone."""
    store = ImageStore(tmp_path / "elsewhere")
    caption, bare, false, huge, gone = caption_prompts("train", 5, 0, store)
    asked = question_prompts("train", 1, 0, store)[:2]
    bad = [
        replace(bare, reference=None),
        replace(false, reference="There is a dog."),
        replace(huge, reference="x" * 10_000_000),
    ]
    folder = tmp_path / "prompts"
    write_prompts(folder, [caption, *asked, *bad, gone])
    digest = gone.images[0].sha256
    (folder / "images" / digest[:2] / f"{digest}.png").unlink()
    out = tmp_path / "a"
    run(job("--out", str(out), *RULES, "--prompts", str(folder)))
    stats = stats_of(out)
    assert stats["num_rows"] == 7
    assert stats["num_pairs"] == 3
    assert stats["pairs_per_kind"]["reasoning"] == 2
    assert stats["dropped"] == {
        "answer_too_long": 1,
        "image_missing": 1,
        "no_reference": 1,
        "not_true": 1,
    }
    assert "There is a dog." in stats["examples"]["not_true"]


def test_every_kind_of_every_prompt_in_order(tmp_path: Path) -> None:
    line = (*RULES, "--count", "8", "--kinds", "relation,entity", "--every-kind")
    run(job("--out", str(tmp_path / "a"), *line))
    ids = [pair.id for pair in read_pairs(tmp_path / "a")]
    expected: list[str] = []
    for index in range(8):
        prompt = f"povid/shapes/train/{index:05d}"
        expected += [f"{prompt}/entity", f"{prompt}/relation"]
    assert ids == expected


# An endpoint.


def test_the_spec_says_what_decides_the_content(tmp_path: Path) -> None:
    with answering() as server:
        options = "--count 2 --concurrency 3 --price-in 1"
        main(words(tmp_path / "a", server.url, options))
    text = (tmp_path / "a" / SPEC).read_text()
    spec = json.loads(text)
    for key in (
        "method",
        "model",
        "templates",
        "temperature",
        "kinds",
        "seed",
        "count",
    ):
        assert key in spec
    # Where the endpoint is, and how it is asked, decides nothing.
    for other in ("127.0.0.1", "concurrency", "price"):
        assert other not in text


def test_chosen_is_the_true_answer_untouched(
    tmp_path: Path, captions: list[Prompt]
) -> None:
    prompts = captions[:4]
    write_prompts(tmp_path / "prompts", prompts)
    with answering() as server:
        line = words(tmp_path / "a", server.url, from_file(tmp_path / "prompts"))
        assert main(line) == 0
    pairs = read_pairs(tmp_path / "a")
    for pair, prompt in zip(pairs, prompts, strict=True):
        assert pair.chosen.text == prompt.reference
        assert pair.rejected.text == f"{prompt.reference} There is a small dog."
        assert pair.prompt.images[0].sha256 == prompt.images[0].sha256


# Resuming.


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captions: list[Prompt]
) -> None:
    write_prompts(tmp_path / "prompts", captions)
    options = f"{from_file(tmp_path / 'prompts')} --price-in 1 --price-out 1"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    original = EndpointInjector.__call__
    num_rows = 0

    async def killed(self: EndpointInjector, row: Row) -> Injection:
        """Dies after the reply is there and before the row is recorded."""
        nonlocal num_rows
        injection = await original(self, row)
        num_rows += 1
        if num_rows in (7, 12, 25):
            raise Killed
        return injection

    with answering() as server:
        assert main(words(whole, server.url, f"{options} --concurrency 1")) == 0
        num_asked = len(server.asked)
        assert num_asked == len(captions)
        monkeypatch.setattr(EndpointInjector, "__call__", killed)
        line = words(parts, server.url, f"{options} --concurrency 5")
        for _ in range(3):
            with pytest.raises(Killed):
                main(line)
            assert not (parts / PAIRS).exists()
        assert main(line) == 0
        asked_by_parts = server.asked[num_asked:]
        texts = {asked.text for asked in asked_by_parts}
        assert len(texts) == num_asked
        # A request in flight when the process died was answered to nobody: at most 4 others at each of 3 deaths.
        assert len(asked_by_parts) - num_asked <= 3 * 4
    assert rows_of(whole) == rows_of(parts)
    stats_of_whole, stats_of_parts = stats_of(whole), stats_of(parts)
    assert stats_of_parts.pop("num_cache_hits") >= 3
    assert stats_of_whole.pop("num_cache_hits") == 0
    assert stats_of_whole == stats_of_parts
    # 10 prompt and 5 completion tokens a reply, at 1 per million.
    assert stats_of_whole["cost"] == pytest.approx(15e-6 * num_asked)


def test_a_complete_set_asks_nothing_even_of_another_address(tmp_path: Path) -> None:
    out = tmp_path / "a"
    nobody = "http://127.0.0.1:9/v1"
    with answering() as server:
        assert main(words(out, server.url, "--count 3")) == 0
        num_asked = len(server.asked)
        assert main(words(out, nobody, "--count 3")) == 0
        assert len(server.asked) == num_asked
        other = words(out, server.url, "--count 3 --temperature 0.1")
        assert main(other) == 2
