"""A row of which no pair can be made, in `generate bdhs` and `generate povid`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.bdhs.sampling import Generate
from actors.image_tokens import ImageTokenCounter
from actors.povid import injection
from cluster.generate import config_of
from cluster.jobs import bdhs_job, povid_job
from cluster.jobs.engines import CountImageTokens, Engines
from common.chat import ChatEncoder
from common.config import RunConfig
from common.config.jobs import BdhsJobConfig, PovidJobConfig
from common.config.povid import EndpointConfig, PovidConfig
from common.data.datasets import IMAGES, STATS, read_pairs, write_prompts
from common.data.images import ImageStore
from common.errors import Refused, UserError
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, RolloutGroup
from common.row_faults import outside_embedding
from common.shapes.prompts import caption_prompts
from tests.row_faults.rows import (
    FAULTS,
    MIXED,
    NUM_GOOD,
    REASONS,
    bad_pair,
    delete_picture,
    good_pair,
    good_pairs,
    two_bad_pairs,
)


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


def test_generate_stops_when_all_rows_fall_to_several_reasons(
    tmp_path: Path, store: ImageStore, model: Path
) -> None:
    write_prompts(tmp_path / "bad", [pair.prompt for pair in two_bad_pairs(store)])
    with pytest.raises(UserError, match=rf"got none of 2 rows; dropped {MIXED}"):
        bdhs_set(tmp_path, "bad", model)
    write_prompts(tmp_path / "none", [])
    with pytest.raises(UserError, match=r"got none of 0 rows in .*/none"):
        bdhs_set(tmp_path, "none", model)


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
