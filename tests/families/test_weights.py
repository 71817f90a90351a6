"""Weights of each family on their way: a model that `save_pretrained` wrote, pushes, adapters, and exports.

Two engines a family. One starts from what the pinned `save_pretrained` wrote and takes a push of other weights; the
other starts from the export of these and takes an adapter. Both are compared with transformers alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import actors.engine.arguments
from common.chat import encoder_of
from common.checkpoint.files import tensors
from common.checkpoint.layout import layout_of
from common.config import EngineOptions, Full, Lora, Model, Rollout
from common.data.images import ImageStore
from common.errors import UserError
from common.records import Prompt
from learner.model.lora import is_adapter
from learner.model.policy import Policy, load_policy
from learner.publisher import export_policy, package, package_adapter, plain_weights
from tests.families.case import Case
from tests.families.cases import parameters
from tests.families.policy import HubPolicy
from tests.families.prompts import ask, prompts_of
from tests.families.qwen import QWEN3_VL_MOE

ADAPTER = Lora(r=8, alpha=16, push="adapter")
WHOLE = Full()
ANSWER = "There is a red circle."
FILE_BYTES = 300_000
"""So small that every export has several files."""


@pytest.fixture(autouse=True)
def any_family_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma-3's weights show in a text, which vLLM's CPU build computes as transformers does."""
    monkeypatch.setattr(actors.engine.arguments, "check_cpu_engines", lambda *_: None)


@dataclass(frozen=True)
class Folder:
    """A model directory in the place of a case's."""

    path: Path

    def directory(self) -> Path:
        return self.path


def model_at(case: Case, path: Path, tuning: Full | Lora = WHOLE) -> Model:
    return Model(
        path=str(path),
        dtype=case.engine_dtype,
        max_length=256,
        freeze_vision=False,
        tuning=tuning,
    )


def engine_at(model: Model) -> Any:
    from actors.engine.factory import make_engine

    options = EngineOptions(block_size=32, kv_cache_bytes=32 << 20)
    return make_engine(model, Rollout(deterministic=True, engine=options))


def policy_at(model: Model) -> Policy:
    """A policy with random values in everything that trains."""
    policy = load_policy(model, model.path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if "lora_" in name else 0.3 * float(parameter.float().std())
            parameter.add_((scale * noise).to(parameter.dtype))
    return policy


def gathered(policy: Policy) -> dict[str, torch.Tensor]:
    """As an engine gathers them: tied ones under each of their names."""
    weights = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        weights[name] = parameter.detach().clone()
    return weights


def export(case: Case, policy: Policy, model: Model, out: Path) -> Path:
    export_policy(
        out,
        policy,
        encoder_of(model),
        gathered(policy),
        model.tuning,
        FILE_BYTES,
    )
    return out


def questions(case: Case, store: ImageStore) -> list[Prompt]:
    if not case.runs_on_cpu:
        return [ask("text", text="What is red?")]
    return prompts_of(case, store)[:2]


@torch.no_grad()
async def difference(
    engine: Any,
    hub: HubPolicy,
    prompts: list[Prompt],
) -> float:
    """The largest one between log-probs, in nats."""
    answer = engine.encoder.encode_response(ANSWER)
    largest = 0.0
    for prompt in prompts:
        scored = torch.tensor(await engine.token_logprobs(prompt, answer))
        expected = hub.token_logprobs(prompt, answer)
        largest = max(largest, float((scored - expected).abs().max()))
    return largest


@pytest.mark.real
@pytest.mark.parametrize("case", parameters())
def test_what_save_pretrained_wrote_starts_and_takes_pushes(
    case: Case, store: ImageStore, tmp_path: Path
) -> None:
    asyncio.run(_check_pushes(case, store, tmp_path))


async def _check_pushes(case: Case, store: ImageStore, folder: Path) -> None:
    dtype = getattr(torch, case.engine_dtype)
    prompts = questions(case, store)
    model = model_at(case, saved_by_transformers(case, folder / "saved"))
    policy = policy_at(model)
    exported = export(case, policy, model, folder / "export")
    current, _ = plain_weights(gathered(policy), WHOLE)
    engine = engine_at(model)
    try:
        start = HubPolicy(case, dtype)
        assert await difference(engine, start, prompts) <= case.engine_tolerance
        trained = HubPolicy(Folder(exported), dtype)  # type: ignore[arg-type]
        # Or the test would not see stale weights.
        assert await difference(engine, trained, prompts) > 0.5
        push = package(1, layout_of(model.path), current, [], None)
        await engine.load_weights(*push)
        assert await difference(engine, trained, prompts) <= case.engine_tolerance
        await check_refusals(engine, push)
    finally:
        await engine.close()


async def check_refusals(engine: Any, push: Any) -> None:
    """A push without one of its tensors, or with one more."""
    manifest, arrays = push
    (first, value), *others = arrays.items()
    later = replace(manifest, version=2)
    for wrong, words in (
        (dict(others), f"got 1 without: {first.partition('@')[0]}"),
        (arrays | {"more": value}, "got 1 unknown: more"),
    ):
        with pytest.raises(UserError, match=words):
            await engine.load_weights(later, wrong)


def saved_by_transformers(case: Case, out: Path) -> Path:
    """The case's directory as a model that was made in the pinned transformers is saved."""
    model = AutoModelForImageTextToText.from_pretrained(case.directory(), dtype="auto")
    # Else it would go back to the names that it was loaded from.
    model._weight_conversions = None
    model.save_pretrained(out)
    encoder_of(Model(path=str(case.directory()))).processor.save_pretrained(out)
    return out


@pytest.mark.real
@pytest.mark.parametrize("case", parameters())
def test_an_export_starts_and_takes_adapters(
    case: Case, store: ImageStore, tmp_path: Path
) -> None:
    asyncio.run(_check_adapters(case, store, tmp_path))


async def _check_adapters(case: Case, store: ImageStore, folder: Path) -> None:
    dtype = getattr(torch, case.engine_dtype)
    prompts = questions(case, store)
    start = model_at(case, case.directory())
    exported = export(case, policy_at(start), start, folder / "export")
    check_files(case, exported)
    tuning: Full | Lora = ADAPTER
    if case is QWEN3_VL_MOE:
        check_that_experts_take_no_adapter(model_at(case, exported, ADAPTER))
        tuning = WHOLE
    model = model_at(case, exported, tuning)
    engine = engine_at(model)
    try:
        hub = HubPolicy(Folder(exported), dtype)  # type: ignore[arg-type]
        assert await difference(engine, hub, prompts) <= case.engine_tolerance
        if isinstance(tuning, Lora):
            policy = policy_at(model)
            weights = gathered(policy)
            adapters = {name: weights[name] for name in filter(is_adapter, weights)}
            await engine.load_weights(*package_adapter(1, adapters, tuning, None))
            merged = export(case, policy, model, folder / "merged")
            trained = HubPolicy(Folder(merged), dtype)  # type: ignore[arg-type]
            assert await difference(engine, trained, prompts) <= case.engine_tolerance
            assert await difference(engine, hub, prompts) > 0.5
    finally:
        await engine.close()


def check_files(case: Case, exported: Path) -> None:
    """The published names, and what transformers leaves out at loading bit by bit as it was published."""
    published, layout = layout_of(case.directory()), layout_of(exported)
    assert layout.is_readable
    assert layout.shapes == published.shapes
    assert layout.carried == published.carried
    before = dict(tensors(case.directory(), published.carried.__contains__))
    after = dict(tensors(exported, published.carried.__contains__))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    _, report = AutoModelForImageTextToText.from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(report.values()), report


def check_that_experts_take_no_adapter(model: Model) -> None:
    with pytest.raises(UserError, match=r"expected merged .* on a CPU"):
        engine_at(model)
