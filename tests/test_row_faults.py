"""One row's fault is that row's drop on every path: the good rows' results stay, the bad row is counted once.

inspect · generate bdhs · generate povid · learner · train · evaluate; vLLM's part: tests/actors/test_row_faults.py.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.bdhs.sampling import Generate
from actors.image_tokens import ImageTokenCounter
from actors.povid import injection
from cluster import import_data
from cluster.evaluation.asking import Asker
from cluster.evaluation.grounding import grounding_gate, pass_gate
from cluster.evaluation.measure import Evaluator
from cluster.generate import config_of
from cluster.jobs import bdhs_job, povid_job
from cluster.jobs.engines import CountImageTokens, Engines
from cluster.run import training_data
from cluster.run.outcome import GroupOutcome
from cluster.run.recorder import Recorder
from cluster.runtime.clients import RolloutClient
from common.chat import ChatEncoder
from common.config import Evaluation, PromptFile, RunConfig
from common.config.jobs import BdhsJobConfig, PovidJobConfig
from common.config.povid import EndpointConfig, PovidConfig
from common.data.datasets import (
    IMAGES,
    PAIRS,
    STATS,
    read_pairs,
    write_pairs,
    write_prompts,
)
from common.data.images import ImageStore
from common.errors import Refused, UserError
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
)
from common.row_faults import (
    drop_report,
    is_machine_fault,
    outside_embedding,
    refusing,
)
from common.shapes.prompts import caption_prompts
from learner.batch.collate import Collator
from learner.learner import Learner
from tests.cluster.runs import events, make_config, run
from tests.fakes import FakeRolloutWorker, LocalHandle
from tests.learner.helpers import run_config
from tests.learner.rank_threads import plans_of_ranks
from tests.row_faults import (
    FAULTS,
    REASONS,
    bad_pair,
    delete_picture,
    fussy_qwen,
    good_pair,
)

NUM_GOOD = 4
OTHER_EXCEPTIONS = [KeyError("size"), TypeError(), RuntimeError("3 != 4"), IndexError()]
"""Some of what libraries raise about a row."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fussy_qwen(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "pictures")


def good_pairs(store: ImageStore) -> list[PreferencePair]:
    return [good_pair(store, number) for number in range(NUM_GOOD)]


def with_bad(
    pairs: Sequence[PreferencePair], store: ImageStore, fault: str
) -> list[PreferencePair]:
    """The pairs with a bad one in their middle."""
    middle = len(pairs) // 2
    return [*pairs[:middle], bad_pair(store, fault), *pairs[middle:]]


# The place


@pytest.mark.parametrize("error", OTHER_EXCEPTIONS)
def test_the_place_decides_not_the_class(error: Exception) -> None:
    with (
        pytest.raises(Refused, match=r"prompt 7: expected .*, got .*; drop it") as info,
        refusing("processor", "prompt 7: expected a picture", "drop it"),
    ):
        raise error
    assert info.value.reason == "processor"
    assert "\n" not in str(info.value)


def test_a_refusal_keeps_its_reason() -> None:
    with pytest.raises(Refused) as info, refusing("processor", "what", "remedy"):
        raise Refused("image_missing", "a.png: no such file")
    assert info.value.reason == "image_missing"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(28, "No space left on device"),
        OSError(24, "Too many open files"),
        UserError("model.path: expected another model"),
    ],
)
def test_what_no_row_is_to_blame_for_surfaces(error: Exception) -> None:
    with pytest.raises(type(error)) as info, refusing("processor", "what", "remedy"):
        raise error
    assert info.value is error
    assert is_machine_fault(error) != isinstance(error, UserError)


def test_ids_outside_of_the_embedding() -> None:
    assert outside_embedding((0, 7), 8) is None
    assert outside_embedding((0, 8), 8) == 8
    assert outside_embedding((3, -1), 8) == -1
    assert outside_embedding((), 8) is None


def test_a_report_has_an_example_of_each_reason() -> None:
    dropped = [
        Dropped("b", "prompt_too_long", "600 tokens"),
        Dropped("a", "image_missing", "a.png:\n\x1b[31mgone"),
        Dropped("c", "image_missing"),
    ]
    assert drop_report(dropped) == (
        "{'image_missing': 2, 'prompt_too_long': 1}, such as prompt_too_long (b: 600 tokens), "
        "image_missing (a: a.png:  [31mgone)"
    )
    assert drop_report([]) == "{}"


# inspect


def inspected(directory: Path, model: Path) -> dict[str, Any]:
    """The policy's figures of a set, one pair per forward."""
    out = directory / "inspect.html"
    words = ["--policy", str(model), "--batch", "1", "--out", str(out)]
    assert import_data.main(["inspect", str(directory), *words]) == 0
    policy: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())["policy"]
    return policy


@FAULTS
def test_inspect(tmp_path: Path, store: ImageStore, model: Path, fault: str) -> None:
    good = good_pairs(store)
    write_pairs(tmp_path / "good", good)
    pairs = with_bad(good, store, fault)
    write_pairs(tmp_path / "mixed", pairs)
    if fault == "deleted_picture":
        delete_picture(tmp_path / "mixed" / IMAGES, pairs[2])
    expected = inspected(tmp_path / "good", model)
    policy = inspected(tmp_path / "mixed", model)
    assert policy["dropped"] == {REASONS[fault]: 1}
    assert policy["points"] == expected["points"]
    assert policy["grounding"]["views"] == expected["grounding"]["views"]


@FAULTS
def test_inspect_stops_when_the_policy_reads_no_pair(
    tmp_path: Path,
    store: ImageStore,
    model: Path,
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = bad_pair(store, fault)
    write_pairs(tmp_path / "set", [pair])
    if fault == "deleted_picture":
        delete_picture(tmp_path / "set" / IMAGES, pair)
    out = tmp_path / "inspect.html"
    words = ["--policy", str(model), "--out", str(out)]
    assert import_data.main(["inspect", str(tmp_path / "set"), *words]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"got none of 1; dropped {{'{REASONS[fault]}': 1}}" in message
    assert "(bad: " in message
    assert not out.exists()


# The learner


@FAULTS
def test_a_step_of_the_learner(store: ImageStore, model: Path, fault: str) -> None:
    good = good_pairs(store)
    pairs = with_bad(good, store, fault)
    if fault == "deleted_picture":
        delete_picture(store.root, pairs[2])
    metrics = []
    for batch in (good, pairs):
        trainer = Learner(run_config(model=model))
        trainer.start()
        result, dropped = trainer.step(1, batch)
        trainer.close()
        assert result.pair_ids == tuple(pair.id for pair in good)
        metrics.append(result.metrics)
    assert [(drop.id, drop.reason) for drop in dropped] == [("bad", REASONS[fault])]
    expected, measured = metrics
    for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
        assert measured[name] == expected[name], name


@FAULTS
def test_all_ranks_agree(
    store: ImageStore, model: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = with_bad(good_pairs(store), store, fault)
    if fault == "deleted_picture":
        delete_picture(store.root, pairs[2])
    ranks = [Collator(ChatEncoder(model, max_length=256)) for _ in range(2)]
    plans = plans_of_ranks(pairs, ranks, 2, monkeypatch)
    for plan in plans:
        assert [drop.reason for drop in plan.dropped] == [REASONS[fault]]
        assert len(plan.pairs) == NUM_GOOD
    first, second = [len(plan.micro_batches) for plan in plans]
    assert first == second


def test_a_short_run_without_a_pair_stops_at_its_last_step(
    store: ImageStore, model: Path
) -> None:
    """Two steps, with a limit of five empty ones in a row: it must not end well, either."""
    trainer = Learner(run_config(model=model, num_steps=2))
    trainer.start()
    bad = [bad_pair(store, "aspect_ratio")]
    trainer.step(1, bad)
    with pytest.raises(UserError, match=r"\{'processor': 2\}, such as processor \(bad"):
        trainer.step(2, bad)


# generate


def pixel_engine(model: Path) -> Engines:
    """Engines whose policy says the same to every prompt that its processor takes."""
    encoder = ChatEncoder(model, 256)
    num_rows = encoder.config.get_text_config().vocab_size

    def say(request: GenerationRequest) -> RolloutGroup | Dropped:
        try:
            token_ids = encoder.encode_prompt(request.prompt).token_ids
        except Refused as error:
            return Dropped(request.id, error.reason, str(error))
        if outside_embedding(token_ids, num_rows) is not None:
            return Dropped(request.id, "token_unknown", "no row")
        completion = Completion((), " a ring at the top.", 0, 0, "stop")
        return RolloutGroup(request.id, request.prompt, token_ids, 0, (completion,))

    async def generate(requests: list[GenerationRequest]) -> Sequence[Any]:
        return [say(request) for request in requests]

    @asynccontextmanager
    async def engines(
        config: RunConfig,
    ) -> AsyncIterator[tuple[list[Generate], CountImageTokens]]:
        yield [generate], ImageTokenCounter(encoder)

    return engines


def bdhs_set(
    folder: Path, name: str, model: Path, engines: Engines | None = None
) -> Path:
    """The pairs that the job makes of the prompts in this folder."""
    out = folder / f"{name}-pairs"
    words = ["bdhs", "--out", str(out), "--prompts", str(folder / name)]
    config = config_of([*words, "--threshold", "2", "--model.path", str(model)])
    assert isinstance(config, BdhsJobConfig)
    bdhs_job.run(config, engines or pixel_engine(model))
    return out


@FAULTS
def test_generate_bdhs(
    tmp_path: Path, store: ImageStore, model: Path, fault: str
) -> None:
    good = [pair.prompt for pair in good_pairs(store)]
    bad = bad_pair(store, fault)
    write_prompts(tmp_path / "good", good)
    write_prompts(tmp_path / "mixed", [*good[:2], bad.prompt, *good[2:]])
    if fault == "deleted_picture":
        delete_picture(tmp_path / "mixed" / IMAGES, bad)
    sets = [bdhs_set(tmp_path, name, model) for name in ("good", "mixed")]
    texts = []
    for directory in sets:
        pairs = read_pairs(directory)
        texts.append([(pair.id, pair.rejected.text) for pair in pairs])
    assert len(texts[0]) == NUM_GOOD
    assert texts[0] == texts[1]
    stats = json.loads((sets[1] / STATS).read_text())
    assert stats["dropped"] == {REASONS[fault]: 1}


@FAULTS
def test_generate_bdhs_stops_when_all_rows_fall_to_one_reason(
    tmp_path: Path, store: ImageStore, model: Path, fault: str
) -> None:
    bad = bad_pair(store, fault)
    write_prompts(tmp_path / "bad", [bad.prompt])
    (file,) = (tmp_path / "bad" / IMAGES).glob("*/*")
    content = file.read_bytes()
    if fault == "deleted_picture":
        file.unlink()
    reason = REASONS[fault]
    expected = (
        rf"got none of 1 rows; dropped \{{'{reason}': 1\}}, such as {reason} \(bad: "
    )
    with pytest.raises(UserError, match=expected) as info:
        bdhs_set(tmp_path, "bad", model)
    assert "\n" not in str(info.value)
    if fault == "deleted_picture":
        # Nothing in the folder stands in the way of the corrected rows.
        file.write_bytes(content)
        assert len(read_pairs(bdhs_set(tmp_path, "bad", model))) == 1


def two_bad_pairs(store: ImageStore) -> list[PreferencePair]:
    """Nothing of them can be used, each for a reason of its own."""
    pairs = []
    for fault in ("aspect_ratio", "embedding"):
        pair = bad_pair(store, fault)
        prompt = replace(pair.prompt, id=fault)
        pairs.append(replace(pair, id=fault, prompt=prompt))
    return pairs


MIXED = r"\{'processor': 1, 'token_unknown': 1\}, such as processor \(aspect_ratio: "


def test_generate_stops_when_all_rows_fall_to_several_reasons(
    tmp_path: Path, store: ImageStore, model: Path
) -> None:
    write_prompts(tmp_path / "bad", [pair.prompt for pair in two_bad_pairs(store)])
    with pytest.raises(UserError, match=rf"got none of 2 rows; dropped {MIXED}"):
        bdhs_set(tmp_path, "bad", model)
    write_prompts(tmp_path / "none", [])
    with pytest.raises(UserError, match=r"got none of 0 rows in .*/none"):
        bdhs_set(tmp_path, "none", model)


def test_inspect_stops_when_all_rows_fall_to_several_reasons(
    tmp_path: Path,
    store: ImageStore,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_pairs(tmp_path / "set", two_bad_pairs(store))
    out = tmp_path / "inspect.html"
    words = ["--policy", str(model), "--out", str(out)]
    assert import_data.main(["inspect", str(tmp_path / "set"), *words]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(rf"got none of 2; dropped {MIXED}", message)
    assert not out.exists()


def test_an_export_of_no_row_says_why(
    tmp_path: Path, store: ImageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone, other) = two_bad_pairs(store)
    same = replace(other, rejected=Response(f"{other.chosen.text}</s>"))
    write_pairs(tmp_path / "set", [gone, same])
    delete_picture(tmp_path / "set" / IMAGES, gone)
    words = ["export", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert import_data.main(words) == 2
    message = capsys.readouterr().err
    assert "got none of 2; dropped {'image_missing': 1, 'pair_identical': 1}" in message


def test_a_picture_that_goes_while_the_policy_answers(
    tmp_path: Path, store: ImageStore, model: Path
) -> None:
    """The set takes a copy of every picture: of the one that is gone by then it has no pair."""
    prompts = [pair.prompt for pair in good_pairs(store)]
    write_prompts(tmp_path / "prompts", prompts)
    digest = prompts[1].images[0].sha256
    (file,) = (tmp_path / "prompts" / IMAGES).glob(f"*/{digest}.*")

    @asynccontextmanager
    async def engines(
        config: RunConfig,
    ) -> AsyncIterator[tuple[list[Generate], CountImageTokens]]:
        async with pixel_engine(model)(config) as ((generate,), count):

            async def delete_afterwards(requests: list[GenerationRequest]) -> Any:
                results = await generate(requests)
                file.unlink(missing_ok=True)
                return results

            yield [delete_afterwards], count

    out = bdhs_set(tmp_path, "prompts", model, engines)
    made = [pair.id for pair in read_pairs(out)]
    assert made == ["bdhs/good-0", "bdhs/good-2", "bdhs/good-3"]
    assert json.loads((out / STATS).read_text())["dropped"] == {"image_missing": 1}


def povid_set(folder: Path, name: str) -> Path:
    out = folder / f"{name}-pairs"
    words = ["povid", "--out", str(out), "--prompts", str(folder / name)]
    words += ["--corrupter", "rules"]
    config = config_of(words)
    assert isinstance(config, PovidJobConfig)
    povid_job.run(config)
    return out


def test_generate_povid(tmp_path: Path) -> None:
    """No policy looks at the rows: a picture that is gone is all that can be wrong with one."""
    prompts = caption_prompts("train", NUM_GOOD, 0, ImageStore(tmp_path / "pictures"))
    write_prompts(tmp_path / "all", prompts)
    write_prompts(tmp_path / "one_lacks", prompts)
    write_prompts(tmp_path / "all_lack", prompts)
    whole = {pair.id: pair for pair in read_pairs(povid_set(tmp_path, "all"))}
    assert len(whole) == NUM_GOOD

    digest = prompts[1].images[0].sha256
    (file,) = (tmp_path / "one_lacks" / IMAGES).glob(f"*/{digest}.*")
    file.unlink()
    out = povid_set(tmp_path, "one_lacks")
    made = read_pairs(out)
    assert len(made) == NUM_GOOD - 1
    for pair in made:
        assert pair.rejected == whole[pair.id].rejected
    assert json.loads((out / STATS).read_text())["dropped"] == {"image_missing": 1}

    for file in (tmp_path / "all_lack" / IMAGES).glob("*/*"):
        file.unlink()
    with pytest.raises(UserError, match=r"got none of 4 rows; .*'image_missing': 4"):
        povid_set(tmp_path, "all_lack")


def test_a_picture_that_goes_before_the_endpoint_is_asked(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the row was checked, and is read again for the request."""
    prompt = good_pair(store, 0).prompt
    monkeypatch.setattr(injection, "refusal", lambda row, config: None)
    delete_picture(store.root, good_pair(store, 0))
    endpoint: Any = None  # nobody asks it
    address = "http://localhost:1/v1"
    settings = PovidConfig(
        endpoint=EndpointConfig(base_url=address, model="m", send_image=True)
    )
    injector = injection.EndpointInjector(settings, endpoint)
    row = injection.Row("row", prompt, "entity")
    result = asyncio.run(injector(row)).result
    assert isinstance(result, Dropped)
    assert (result.id, result.reason) == ("row", "image_missing")


# train


def prompt_set(tmp_path: Path, num_lacking: int, num_prompts: int = 12) -> Path:
    """Prompts of the shapes world; the pictures of the first ones are gone."""
    folder = tmp_path / "prompts"
    prompts = caption_prompts("train", num_prompts, 0, ImageStore(tmp_path / "images"))
    write_prompts(folder, prompts)
    for prompt in prompts[:num_lacking]:
        digest = prompt.images[0].sha256
        (file,) = (folder / IMAGES).glob(f"*/{digest}.*")
        file.unlink()
    return folder


def train_config(tmp_path: Path, num_lacking: int, **changes: Any) -> RunConfig:
    """Online pairs about a prompt set, without suites: the first prompt is the one that pushes are proved with."""
    config = make_config(tmp_path, evaluation__suites="[]", **changes)
    prompts = PromptFile(path=str(prompt_set(tmp_path, num_lacking)))
    data = config.data.model_copy(update={"prompts": prompts})
    return config.model_copy(update={"data": data})


def test_train_counts_a_row_and_goes_on(tmp_path: Path) -> None:
    """The first prompt's picture is gone: it is not the probe, and a group of it is a drop in each epoch."""
    config = train_config(tmp_path, num_lacking=1)
    _, run_dir = run(config)
    outcomes = Counter(event["outcome"] for event in events(run_dir, "group"))
    assert outcomes["image_missing"] > 0
    (bad,) = {
        event["id"].partition(":")[2]
        for event in events(run_dir, "group")
        if event["outcome"] == "image_missing"
    }
    epochs = {event["id"].partition(":")[0] for event in events(run_dir, "group")}
    assert outcomes["image_missing"] <= len(epochs)
    assert bad not in {pair.prompt.id for pair in read_pairs(run_dir / "pairs")}
    last_line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert last_line["pairs/dropped/image_missing"] <= outcomes["image_missing"]
    assert last_line["step"] == config.learner.num_steps


def test_an_online_pair_whose_picture_is_gone_by_the_checkpoint(
    tmp_path: Path, store: ImageStore
) -> None:
    recorder = Recorder(tmp_path / "run")
    pairs = good_pairs(store)
    for pair in pairs:
        recorder.group("online", GroupOutcome(pair.id, pairs=(pair,)))
    delete_picture(store.root, pairs[1])
    accepted = recorder.begin_checkpoint(1)
    asyncio.run(recorder.write_pairs(1, accepted))
    recorder.pairs.finish()
    kept = read_pairs(tmp_path / "run" / "pairs")
    assert [pair.id for pair in kept] == ["good-0", "good-2", "good-3"]
    (row,) = events(tmp_path / "run", "row")
    assert (row["id"], row["outcome"]) == ("good-1", "image_missing")


def test_train_stops_when_no_prompt_can_be_encoded(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"got none of 12; .*'image_missing': 12"
    ) as info:
        run(train_config(tmp_path, num_lacking=12))
    assert "\n" not in str(info.value)


def test_train_stops_when_the_engine_refuses_every_prompt(tmp_path: Path) -> None:
    """All but the probe's prompt are gone, and that one is too long for the engine alone."""

    class ShortWorker(FakeRolloutWorker):
        async def generate(self, requests: list[GenerationRequest]) -> list[Any]:
            return [Dropped(r.id, "prompt_too_long", "300 tokens") for r in requests]

    config = train_config(tmp_path, num_lacking=0, loop__stall_limit_s=50)
    expected = r"every one is refused; dropped \{'prompt_too_long': 12\}, such as prompt_too_long \(0:"
    with pytest.raises(UserError, match=expected):
        run(config, rollout=ShortWorker)


def test_train_stops_when_prompts_are_refused_for_several_reasons(
    tmp_path: Path,
) -> None:
    class FussyWorker(FakeRolloutWorker):
        async def generate(self, requests: list[GenerationRequest]) -> list[Any]:
            reasons = ("prompt_too_long", "processor")
            return [
                Dropped(request.id, reasons[request.id[-1] in "02468"], "refused")
                for request in requests
            ]

    config = train_config(tmp_path, num_lacking=0, loop__stall_limit_s=50)
    expected = r"every one is refused; dropped \{'p\w+': \d+, 'p\w+': \d+\}, such as"
    with pytest.raises(UserError, match=expected):
        run(config, rollout=FussyWorker)


def test_drops_by_chance_do_not_count_as_refusals(tmp_path: Path) -> None:
    """Groups that tie were sampled: the run waits until `stall_limit_s`, and its messages have an example."""

    class SilentWorker(FakeRolloutWorker):
        phrases = ("There is a red circle at the top.",)

    config = train_config(tmp_path, num_lacking=0, loop__stall_limit_s=0.5)
    expected = r"dropped \{'(identical|tie)': \d+\}, such as (identical|tie) \(0:\w"
    with pytest.raises(UserError, match=expected):
        run(config, rollout=SilentWorker)


def test_train_stops_when_no_offline_row_is_usable(
    tmp_path: Path, store: ImageStore
) -> None:
    pairs = good_pairs(store)
    write_pairs(tmp_path / "set", [pairs[0]])
    table = pq.read_table(tmp_path / "set" / PAIRS)
    nothing = pa.nulls(1, table.schema.field("chosen").type)
    place = table.schema.get_field_index("chosen")
    table = table.set_column(place, "chosen", nothing)
    pq.write_table(table, tmp_path / "set" / PAIRS)
    config = make_config(
        tmp_path, mixture__online_fraction=0, data__offline__path=tmp_path / "set"
    )

    with pytest.raises(UserError, match=r"none of 1 rows; .*bad_row \(good-0: row 0"):
        training_data.load_offline(config, [])


# evaluate


class RefusingPolicy:
    """An engine that can be given no prompt."""

    async def generate(self, requests: list[GenerationRequest]) -> list[Dropped]:
        return [Dropped(request.id, "processor", "200:1") for request in requests]


class IndifferentPolicy(RefusingPolicy):
    """Likes all answers alike."""

    async def score(self, answers: Sequence[tuple[Prompt, str]]) -> list[Any]:
        return [(-0.5,) for _ in answers]


def test_evaluate_stops_without_an_answer(tmp_path: Path) -> None:
    evaluator = Evaluator(make_config(tmp_path), ImageStore(tmp_path / "images"))
    client = RolloutClient(LocalHandle(RefusingPolicy()), 30)
    expected = (
        r"got none to 4 prompts; dropped \{'processor': 4\}, such as processor \("
    )
    with pytest.raises(UserError, match=expected):
        asyncio.run(evaluator.validate([client], (), None))


def test_evaluate_stops_when_pairs_are_all_there_is_and_none_is_scored(
    tmp_path: Path, store: ImageStore
) -> None:
    class Scorer:
        async def score(self, answers: Sequence[tuple[Prompt, str]]) -> list[Dropped]:
            reasons = ("processor", "special_token")
            return [
                Dropped(prompt.id, reasons[number % 4 > 1])
                for number, (prompt, _) in enumerate(answers)
            ]

    write_pairs(tmp_path / "held", good_pairs(store))
    config = make_config(
        tmp_path, evaluation__suites="[]", evaluation__pairs=tmp_path / "held"
    )
    evaluator = Evaluator(config, store)
    client = RolloutClient(LocalHandle(Scorer()), 30)
    expected = r"evaluation.pairs: .* got none; dropped \{'processor': \d+, 'special"
    with pytest.raises(UserError, match=expected):
        asyncio.run(evaluator.measure("test", [client], (), None, "asking"))


def test_evaluate_counts_held_out_pairs_without_their_picture(
    tmp_path: Path, store: ImageStore
) -> None:
    pairs = good_pairs(store)
    write_pairs(tmp_path / "held", pairs)
    delete_picture(tmp_path / "held" / IMAGES, pairs[1])
    settings = Evaluation(pairs=str(tmp_path / "held"), bootstrap_samples=20)
    gate = grounding_gate(settings, [], store)
    asker = Asker([IndifferentPolicy()])
    grounding, logps = asyncio.run(pass_gate(gate, asker, None, settings))
    assert grounding.dropped == {"image_missing": 1}
    assert set(logps["true"]) == {"good-0", "good-2", "good-3"}
