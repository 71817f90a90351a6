"""Offline pairs, judge-ranked pairs and online BDHS in one run: exact shares, one outcome per group, resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.run.training_data import load_offline, load_prompts
from common.chat import ChatEncoder
from common.config import Data, PromptFile, RunConfig
from common.data.datasets import read_pairs, write_pairs, write_prompts
from common.data.images import ImageStore
from common.errors import UserError
from common.metrics import read_lines
from common.records import Dropped, PreferencePair, Prompt, StepResult
from common.shapes.prompts import caption_prompts
from tests.cluster.runs import (
    STEPS,
    events,
    killed_at,
    make_config,
    offline_set,
    run,
    trained_pairs,
)
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker


def three_sources(tmp_path: Path, **changes: Any) -> RunConfig:
    """Of 8 slots: 4 offline, 3 judged, 1 online BDHS, in every step."""
    values = {
        "learner.global_batch": 8,
        "mixture.kind": "ratio",
        "mixture.online_fraction": 0.5,
        "mixture.online_bdhs_fraction": 0.25,
        "data.offline.path": offline_set(tmp_path / "bdhs", "bdhs", 6),
    }
    return make_config(tmp_path, **{**values, **changes})


def sources_of(run_dir: Path) -> dict[str, str]:
    """Group id -> source of every settled group."""
    return {event["id"]: event["source"] for event in events(run_dir, "group")}


def pair_groups(run_dir: Path) -> list[dict[str, Any]]:
    """The groups that became pairs."""
    groups = events(run_dir, "group")
    return [event for event in groups if event["outcome"] == "pair"]


def with_prompts(config: RunConfig, folder: Path) -> RunConfig:
    """The same run on the prompts of a folder."""
    data = Data(prompts=PromptFile(path=str(folder)))
    return config.model_copy(update={"data": data})


def max_staleness_of(run_dir: Path) -> float:
    lines = read_lines(run_dir / "metrics.jsonl")
    return max(line.get("staleness/max", 0) for line in lines)


class TyingWorker(FakeRolloutWorker):
    """Most judged groups are dropped: nine answers in ten are the same."""

    phrases = ("There is a red circle at the top.",) * 9 + (
        "There is a blue star at the bottom.",
    )


@pytest.mark.parametrize("worker", [FakeRolloutWorker, TyingWorker])
def test_three_sources_in_every_batch_and_one_outcome_per_group(
    tmp_path: Path, worker: type
) -> None:
    _, run_dir = run(three_sources(tmp_path), rollout=worker)
    source = sources_of(run_dir)
    for event in events(run_dir, "step"):
        counts = Counter(source.get(pair, "offline") for pair in event["pairs"])
        assert counts == {"offline": 4, "online": 3, "online_bdhs": 1}
    online = [pair for pair in trained_pairs(run_dir) if pair in source]
    assert len(online) == STEPS * 4
    assert len(set(online)) == len(online)
    groups = events(run_dir, "group")
    assert len(groups) == len(source)
    for event in groups:
        if event["source"] == "online_bdhs":
            assert event["id"].endswith(event["prompt"])
            assert [len(sha256) for sha256 in event["images"]] == [64]
            assert len(event["completions"]) == len(event["weight_versions"]) == 1
    assert max_staleness_of(run_dir) <= 1

    kept = {pair.id: pair for pair in read_pairs(run_dir / "pairs")}
    prompts = caption_prompts("train", 40, 0, ImageStore(tmp_path / "i"))
    references = {prompt.id: prompt.reference for prompt in prompts}
    for pair_id in online:
        pair = kept[pair_id]
        assert pair.source == source[pair_id]
        if pair.source == "online_bdhs":
            assert pair.chosen.text == references[pair.prompt.id]


@pytest.mark.parametrize("dies_at", [3, 5, 8])
def test_kill_and_resume_trains_each_pair_once(tmp_path: Path, dies_at: int) -> None:
    config = three_sources(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(dies_at))
    runtime, run_dir = run(config, resume=True)
    trained = trained_pairs(run_dir)
    online = [pair for pair in trained if not pair.startswith("bdhs/")]
    assert len(online) == STEPS * 4
    assert len(set(online)) == len(online)
    assert runtime.handles["learner/0"].worker.weight == STEPS * 8
    source = {event["id"]: event["source"] for event in pair_groups(run_dir)}
    counts = Counter(source[pair] for pair in online)
    assert counts == {"online": STEPS * 3, "online_bdhs": STEPS}


def test_online_bdhs_alone_asks_no_judge(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path, mixture__online_bdhs_fraction=1))
    assert set(sources_of(run_dir).values()) == {"online_bdhs"}
    assert len(trained_pairs(run_dir)) == STEPS * 4


def test_prompts_without_a_reference_are_dropped(tmp_path: Path) -> None:
    prompts = caption_prompts("train", 12, 0, ImageStore(tmp_path / "images"))
    prompts[1::2] = without_reference(prompts[1::2])
    write_prompts(tmp_path / "half", prompts)
    plain = make_config(tmp_path, mixture__online_bdhs_fraction=1)
    _, run_dir = run(with_prompts(plain, tmp_path / "half"))
    reasons = Counter(event["outcome"] for event in events(run_dir, "group"))
    last_line = read_lines(run_dir / "metrics.jsonl")[-1]
    # Groups that settle after the last step are in the journal only.
    assert 0 < last_line["pairs/dropped/no_reference"] <= reasons["no_reference"]


def test_prompts_that_all_lack_a_reference_are_refused_at_start(tmp_path: Path) -> None:
    prompts = caption_prompts("train", 12, 0, ImageStore(tmp_path / "images"))
    write_prompts(tmp_path / "none", without_reference(prompts))
    plain = make_config(tmp_path, mixture__online_bdhs_fraction=1)
    with pytest.raises(
        UserError,
        match=r"reference answers for mixture\.online_bdhs_fraction = 1.*none among 12",
    ):
        run(with_prompts(plain, tmp_path / "none"))


def without_reference(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [replace(prompt, reference=None) for prompt in prompts]


def test_prompts_without_truth_have_no_judge_that_needs_it(tmp_path: Path) -> None:
    prompts = caption_prompts("train", 12, 0, ImageStore(tmp_path / "images"))
    without_truth = [replace(prompt, truth=None) for prompt in prompts]
    write_prompts(tmp_path / "none", without_truth)

    def prompts_of(**changes: Any) -> list[Prompt]:
        config = with_prompts(make_config(tmp_path, **changes), tmp_path / "none")
        return load_prompts(config, ImageStore(tmp_path / "store"), [])

    with pytest.raises(
        UserError,
        match=r"truth for reward\.judge\.kind = rules, got none among 12; name a judge",
    ) as caught:
        prompts_of(mixture__online_bdhs_fraction=0.5)
    assert "\n" not in str(caught.value)
    # Another judge, BDHS alone, and offline pairs alone need no truth.
    assert len(prompts_of(reward__judge__kind="policy")) == 12
    assert len(prompts_of(mixture__online_bdhs_fraction=1)) == 12
    offline = prompts_of(mixture__online_fraction=0, data__offline__path=tmp_path)
    assert len(offline) == 12


def test_losses_of_unknown_sources_are_refused_at_start(tmp_path: Path) -> None:
    misspelt = {"learner.source_losses.bdsh.weight": 0.5}
    with pytest.raises(
        UserError, match=r"sources of this run \(bdhs, online, online_bdhs\), got bdsh"
    ):
        run(three_sources(tmp_path, **misspelt))
    right = {"learner.source_losses.bdhs.weight": 0.5, "run.dir": tmp_path / "good"}
    run(three_sources(tmp_path, **right))


def test_several_offline_sets_are_one(tmp_path: Path) -> None:
    first = offline_set(tmp_path / "a", "povid", 6)
    second = offline_set(tmp_path / "b", "bdhs", 6)
    third = offline_set(tmp_path / "c", "again", 1)
    (pair,) = read_pairs(third)
    write_pairs(third, [replace(pair, id=read_pairs(first)[0].id)])
    config = make_config(
        tmp_path,
        mixture__online_fraction=0,
        data__offline__path=f'["{first}", "{second}", "{third}"]',
        data__offline__by_prompt="true",
    )
    _, run_dir = run(config)
    (dropped,) = events(run_dir, "row")
    assert dropped["outcome"] == "duplicate_id"
    for event in events(run_dir, "step"):
        by_prompt = Counter(pair.partition("/")[2] for pair in event["pairs"])
        assert set(by_prompt.values()) == {2}


def test_offline_pairs_of_another_run_are_of_no_version(tmp_path: Path) -> None:
    pairs = read_pairs(offline_set(tmp_path / "old", "online", 6))
    versioned = [replace(pair, weight_version=7) for pair in pairs]
    write_pairs(tmp_path / "versioned", versioned)
    config = make_config(
        tmp_path,
        mixture__online_fraction=0,
        data__offline__path=tmp_path / "versioned",
    )
    _, run_dir = run(config)
    for line in read_lines(run_dir / "metrics.jsonl"):
        assert line["pairs/online_frac"] == 0.0


def test_offline_tokens_of_another_policy_are_read_as_text(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, mixture__online_fraction=0, data__offline__path=tmp_path / "foreign"
    )
    pair, *_ = read_pairs(offline_set(tmp_path / "bdhs", "bdhs", 6))
    encoder = ChatEncoder(config.model.path, config.model.max_length)
    ids = encoder.encode_response(pair.rejected.text)
    sampled = replace(pair, rejected=replace(pair.rejected, token_ids=ids))
    of_another_tokenizer = replace(
        pair,
        id="of_another_tokenizer",
        rejected=replace(pair.rejected, token_ids=(5, 6, 7)),
    )
    of_another_template = replace(
        sampled, id="of_another_template", prompt_token_ids=(1, 2)
    )
    pairs = [sampled, of_another_tokenizer, of_another_template]
    write_pairs(tmp_path / "foreign", pairs)
    loaded = load_offline(config, [])
    assert [pair.rejected.token_ids for pair in loaded] == [ids, None, ids]
    assert {pair.prompt_token_ids for pair in loaded} == {None}


class RefusingTheLast(FakeLearner):
    """Refuses the last pair of every batch, which is an offline one."""

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        result, _ = await super().step(step, pairs[:-1])
        return result, [Dropped(pairs[-1].id, "pair_too_long")]


def test_offline_pairs_of_another_run_do_not_pass_for_this_ones(tmp_path: Path) -> None:
    """Both runs give their pairs the same ids; one that is refused is not made up for by an online group."""
    _, first = run(make_config(tmp_path / "first"))
    ids_of_first = {pair.id for pair in read_pairs(first / "pairs")}
    half = {
        "mixture.kind": "ratio",
        "mixture.online_fraction": 0.5,
        "data.offline.path": first / "pairs",
    }
    _, run_dir = run(make_config(tmp_path / "second", **half), learner=RefusingTheLast)
    online = {event["id"] for event in pair_groups(run_dir)}
    assert online & ids_of_first
    for event in events(run_dir, "step"):
        assert [pair in online for pair in event["pairs"]] == [True, True, False]
    refused = [event["id"] for event in events(run_dir, "discard")]
    assert len(refused) == STEPS
    assert online.isdisjoint(refused)
    for pair_id in refused:
        assert pair_id.removeprefix("offline:") in ids_of_first


def test_a_run_without_online_pairs_has_no_staleness(tmp_path: Path) -> None:
    offline = offline_set(tmp_path / "bdhs", "bdhs", 6)
    values = {"mixture.online_fraction": 0.0, "data.offline.path": offline}
    _, run_dir = run(make_config(tmp_path, **values))
    lines = read_lines(run_dir / "metrics.jsonl")
    assert len(lines) == STEPS
    for line in lines:
        assert line["pairs/online_frac"] == 0
        assert not [name for name in line if name.startswith("staleness/")]
