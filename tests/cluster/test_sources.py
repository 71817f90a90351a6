"""Offline pairs, judge-ranked pairs and online BDHS in one run: exact shares, one outcome per group, resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.training_data import load_offline, load_prompts
from common.chat import ChatEncoder
from common.config import Data, PromptFile, RunConfig
from common.datasets import read_pairs, write_pairs, write_prompts
from common.errors import UserError
from common.images import ImageStore
from common.metrics import read_lines
from common.records import Dropped, PreferencePair, Prompt, Response, StepResult
from common.shapes.prompts import caption_prompts
from tests.cluster.test_experiment import STEPS, KilledLearner, events, make_config, run
from tests.fakes import FakeLearner, FakeRolloutWorker


def offline_set(folder: Path, source: str, count: int = 6, first_id: str = "") -> Path:
    prompts = caption_prompts("train", count, 5, ImageStore(folder.parent / "images"))
    pairs = [
        PreferencePair(
            first_id or f"{source}/{p.id}",
            p,
            Response(p.reference or ""),
            Response(f"No {source}."),
            source,
        )
        for p in prompts[: 1 if first_id else None]
    ]
    write_pairs(folder, pairs)
    return folder


def three_sources(tmp_path: Path, **changes: Any) -> RunConfig:
    """Of 8 slots: 4 offline, 3 judged, 1 online BDHS, in every step."""
    values = {
        "learner.global_batch": 8,
        "mixture.kind": "ratio",
        "mixture.online_fraction": 0.5,
        "mixture.online_bdhs_fraction": 0.25,
        "data.offline.path": offline_set(tmp_path / "bdhs", "bdhs"),
    }
    return make_config(tmp_path, **{**values, **changes})


def sources_of(run_dir: Path) -> dict[str, str]:
    return {event["id"]: event["source"] for event in events(run_dir, "group")}


class TyingWorker(FakeRolloutWorker):
    """Most judged groups come to nothing: nine answers in ten are the same."""

    phrases = ("There is a red circle at the top.",) * 9 + (
        "There is a blue star at the bottom.",
    )


@pytest.mark.parametrize("worker", [FakeRolloutWorker, TyingWorker])
def test_three_sources_in_every_batch_and_one_outcome_per_group(
    tmp_path: Path, worker: type
) -> None:
    _, run_dir = run(three_sources(tmp_path), rollout=worker)
    source = sources_of(run_dir)
    steps = [event["pairs"] for event in events(run_dir, "step")]
    for pairs in steps:
        counts = Counter(source.get(pair, "offline") for pair in pairs)
        assert counts == {"offline": 4, "online": 3, "online_bdhs": 1}
    online = [pair for pairs in steps for pair in pairs if pair in source]
    assert len(online) == STEPS * 4 == len(set(online))
    settled = Counter(event["id"] for event in events(run_dir, "group"))
    assert max(settled.values()) == 1
    bdhs = [
        event for event in events(run_dir, "group") if event["source"] == "online_bdhs"
    ]
    assert all(
        len(event["completions"]) == 1 == len(event["weight_versions"])
        for event in bdhs
    )
    assert (
        max(line["staleness/max"] for line in read_lines(run_dir / "metrics.jsonl"))
        <= 1
    )
    kept = {pair.id: pair for pair in read_pairs(run_dir / "pairs")}
    assert all(kept[pair].source == source[pair] for pair in online)
    references = {
        prompt.id: prompt.reference
        for prompt in caption_prompts("train", 40, 0, ImageStore(tmp_path / "i"))
    }
    of_bdhs = [kept[pair] for pair in online if source[pair] == "online_bdhs"]
    assert all(pair.chosen.text == references[pair.prompt.id] for pair in of_bdhs)


@pytest.mark.parametrize("dies_at", [3, 5, 8])
def test_kill_and_resume_trains_each_pair_once(tmp_path: Path, dies_at: int) -> None:
    config = three_sources(tmp_path)
    KilledLearner.dies_at = dies_at
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=KilledLearner)
    KilledLearner.dies_at = 0
    runtime, run_dir = run(config, resume=True, learner=KilledLearner)
    final = {event["step"]: event["pairs"] for event in events(run_dir, "step")}
    online = [
        pair
        for step in range(1, STEPS + 1)
        for pair in final[step]
        if not pair.startswith("bdhs/")
    ]
    assert len(online) == STEPS * 4 == len(set(online))
    assert runtime.handles["learner/0"].worker.weight == STEPS * 8
    last = {
        event["id"]: event["source"]
        for event in events(run_dir, "group")
        if event["outcome"] == "pair"
    }
    assert Counter(last[pair] for pair in online) == {
        "online": STEPS * 3,
        "online_bdhs": STEPS,
    }


def test_online_bdhs_alone_asks_no_judge(tmp_path: Path) -> None:
    config = make_config(tmp_path, mixture__online_bdhs_fraction=1)
    _, run_dir = run(config)
    assert {event["source"] for event in events(run_dir, "group")} == {"online_bdhs"}
    assert (
        len([pair for event in events(run_dir, "step") for pair in event["pairs"]])
        == STEPS * 4
    )


def test_prompts_without_a_reference_are_dropped_or_refused_at_start(
    tmp_path: Path,
) -> None:
    prompts = caption_prompts("train", 12, 0, ImageStore(tmp_path / "images"))
    half = [
        replace(prompt, reference=None) if index % 2 else prompt
        for index, prompt in enumerate(prompts)
    ]
    write_prompts(tmp_path / "half", half)
    write_prompts(
        tmp_path / "none", [replace(prompt, reference=None) for prompt in prompts]
    )

    def config(name: str) -> RunConfig:
        plain = make_config(tmp_path / f"run_{name}", mixture__online_bdhs_fraction=1)
        return plain.model_copy(
            update={"data": Data(prompts=PromptFile(path=str(tmp_path / name)))}
        )

    _, run_dir = run(config("half"))
    drops = [
        event
        for event in events(run_dir, "group")
        if event["outcome"] == "no_reference"
    ]
    assert drops
    assert (
        0
        < read_lines(run_dir / "metrics.jsonl")[-1]["pairs/dropped/no_reference"]
        <= len(drops)
    )
    with pytest.raises(
        UserError,
        match=r"reference answers for mixture\.online_bdhs_fraction = 1.*none among 12",
    ):
        run(config("none"))


def test_prompts_without_truth_have_no_judge_that_needs_it(tmp_path: Path) -> None:
    prompts = caption_prompts("train", 12, 0, ImageStore(tmp_path / "images"))
    write_prompts(
        tmp_path / "none", [replace(prompt, truth=None) for prompt in prompts]
    )
    data = Data(prompts=PromptFile(path=str(tmp_path / "none")))

    def prompts_of(**changes: Any) -> list[Prompt]:
        config = make_config(tmp_path, **changes).model_copy(update={"data": data})
        return load_prompts(config, ImageStore(tmp_path / "store"), [])

    with pytest.raises(
        UserError,
        match=r"truth for reward\.judge\.kind = rules, got none among 12; add a",
    ) as caught:
        prompts_of(mixture__online_bdhs_fraction=0.5)
    assert "\n" not in str(caught.value)
    fits = {"reward__judge__kind": "policy"}, {"mixture__online_bdhs_fraction": 1}
    offline = {"mixture__online_fraction": 0, "data__offline__path": tmp_path}
    assert all(len(prompts_of(**changes)) == 12 for changes in (*fits, offline))


def test_losses_of_unknown_sources_are_refused_at_start(tmp_path: Path) -> None:
    words = {"learner.source_losses.bdsh.weight": 0.5}
    with pytest.raises(
        UserError, match=r"sources of this run \(bdhs, online, online_bdhs\), got bdsh"
    ):
        run(three_sources(tmp_path, **words))
    run(
        three_sources(
            tmp_path,
            **{"learner.source_losses.bdhs.weight": 0.5, "run.dir": tmp_path / "good"},
        )
    )


def test_several_offline_sets_are_one(tmp_path: Path) -> None:
    first, second = (
        offline_set(tmp_path / "a", "povid"),
        offline_set(tmp_path / "b", "bdhs"),
    )
    same = offline_set(tmp_path / "c", "again", first_id=read_pairs(first)[0].id)
    paths = f'["{first}", "{second}", "{same}"]'
    config = make_config(
        tmp_path,
        mixture__online_fraction=0,
        data__offline__path=paths,
        data__offline__by_prompt="true",
    )
    _, run_dir = run(config)
    (dropped,) = events(run_dir, "row")
    assert dropped["outcome"] == "duplicate_id"
    for event in events(run_dir, "step"):
        by_prompt = Counter(pair.partition("/")[2] for pair in event["pairs"])
        assert set(by_prompt.values()) == {2}


def test_offline_pairs_of_another_run_are_of_no_version(tmp_path: Path) -> None:
    folder = offline_set(tmp_path / "old", "online")
    write_pairs(
        tmp_path / "versioned",
        [replace(pair, weight_version=7) for pair in read_pairs(folder)],
    )
    _, run_dir = run(
        make_config(
            tmp_path,
            mixture__online_fraction=0,
            data__offline__path=tmp_path / "versioned",
        )
    )
    assert {
        line["pairs/online_frac"] for line in read_lines(run_dir / "metrics.jsonl")
    } == {0.0}


def test_offline_tokens_of_another_policy_are_read_as_text(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, mixture__online_fraction=0, data__offline__path=tmp_path / "foreign"
    )
    own, *_ = read_pairs(offline_set(tmp_path / "bdhs", "bdhs"))
    ids = ChatEncoder(config.model.path, config.model.max_length).encode_response(
        own.rejected.text
    )
    sampled = replace(own, rejected=replace(own.rejected, token_ids=ids))
    foreign = [
        replace(
            own,
            id="of_another_tokenizer",
            rejected=replace(own.rejected, token_ids=(5, 6, 7)),
        ),
        replace(sampled, id="of_another_template", prompt_token_ids=(1, 2)),
    ]
    write_pairs(tmp_path / "foreign", [sampled, *foreign])
    loaded = load_offline(config, [])
    assert [pair.rejected.token_ids for pair in loaded] == [ids, None, ids]
    assert {pair.prompt_token_ids for pair in loaded} == {None}


class RefusingTheLast(FakeLearner):
    """Batches end with an offline pair."""

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        result, _ = await super().step(step, pairs[:-1])
        return result, [Dropped(pairs[-1].id, "pair_too_long")]


def test_offline_pairs_of_another_run_do_not_pass_for_this_ones(tmp_path: Path) -> None:
    """Both runs give their pairs the same ids; one that is refused is not made up for by an online group."""
    _, first = run(make_config(tmp_path / "first"))
    known = {pair.id for pair in read_pairs(first / "pairs")}
    half = {
        "mixture.kind": "ratio",
        "mixture.online_fraction": 0.5,
        "data.offline.path": first / "pairs",
    }
    _, run_dir = run(make_config(tmp_path / "second", **half), learner=RefusingTheLast)
    online = {
        event["id"] for event in events(run_dir, "group") if event["outcome"] == "pair"
    }
    assert online & known
    for event in events(run_dir, "step"):
        assert [pair in online for pair in event["pairs"]] == [True, True, False]
    refused = [event["id"] for event in events(run_dir, "discard")]
    assert len(refused) == STEPS
    assert {pair.removeprefix("offline:") for pair in refused} <= known
    assert online.isdisjoint(refused)


def rloo_config(tmp_path: Path, **changes: Any) -> RunConfig:
    """Batches of 3 records from groups of 2 each: every second batch begins with what is left of a group."""
    values = {
        "learner.loss.kind": "rloo",
        "learner.loss.beta": 0.4,
        "learner.global_batch": 3,
    }
    return make_config(tmp_path, **{"rollout__num_completions": 4, **values, **changes})


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_rloo_uses_all_completions_of_a_group_or_none(
    tmp_path: Path, max_staleness: int
) -> None:
    _, run_dir = run(rloo_config(tmp_path, loop__max_staleness=max_staleness))
    steps = [event["pairs"] for event in events(run_dir, "step")]
    trained = [pair for pairs in steps for pair in pairs]
    assert [len(pairs) for pairs in steps] == [3] * STEPS
    assert len(set(trained)) == len(trained)
    groups = [event for event in events(run_dir, "group") if event["outcome"] == "pair"]
    assert {event["source"] for event in groups} == {"rloo"}
    for event in groups:
        assert list(event["pairs"]) == [f"{event['id']}#0", f"{event['id']}#1"]
        assert len(event["completions"]) == 4
        assert sum(
            score for scores in event["pairs"].values() for score in scores
        ) == pytest.approx(0, abs=1e-9)
    assert set(trained) <= {pair for event in groups for pair in event["pairs"]}
    assert (
        max(line["staleness/max"] for line in read_lines(run_dir / "metrics.jsonl"))
        <= max_staleness
    )


def test_rloo_killed_and_resumed_trains_each_record_once(tmp_path: Path) -> None:
    config = rloo_config(tmp_path)
    KilledLearner.dies_at = 7
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=KilledLearner)
    KilledLearner.dies_at = 0
    _, run_dir = run(config, resume=True, learner=KilledLearner)
    final = {event["step"]: event["pairs"] for event in events(run_dir, "step")}
    trained = [pair for pairs in final.values() for pair in pairs]
    assert len(trained) == STEPS * 3 == len(set(trained))


def test_rloo_wants_fresh_groups_of_even_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be even for the rloo loss, got 3"):
        rloo_config(tmp_path, rollout__num_completions=3)
    mixed = {"learner.loss.kind": "rloo", "learner.global_batch": 8}
    with pytest.raises(
        UserError,
        match=r"freshly judged groups, got pairs of bdhs, online_bdhs.*source_losses\.bdhs",
    ):
        run(three_sources(tmp_path, **mixed))
    own = {
        f"learner.source_losses.{name}.kind": "sigmoid"
        for name in ("bdhs", "online_bdhs")
    }
    _, run_dir = run(
        three_sources(tmp_path, **mixed, **own, **{"run.dir": tmp_path / "good"})
    )
    assert set(sources_of(run_dir).values()) == {"rloo", "online_bdhs"}
