"""vLLM runs each family as transformers does: the same prompt tokens, log-probs and greedy answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

import actors.engine.arguments
from common.config import EngineOptions, Model, Rollout
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Prompt
from tests.families.case import Case
from tests.families.cases import ON_CPU, parameters
from tests.families.gemma import GEMMA3
from tests.families.policy import HubPolicy
from tests.families.prompts import ask, blank, prompts_of

MAX_LENGTH = 256
NUM_TOKENS = 6


def engine_of(case: Case) -> Any:
    """A deterministic engine in this process."""
    from actors.engine.factory import make_engine

    model = Model(
        path=str(case.directory()), dtype=case.engine_dtype, max_length=MAX_LENGTH
    )
    options = EngineOptions(block_size=32, kv_cache_bytes=32 << 20)
    rollout = Rollout(deterministic=True, engine=options)
    return make_engine(model, rollout, timeout_s=120)


def requests_of(prompts: list[Prompt]) -> list[GenerationRequest]:
    """A greedy answer to each prompt, and two sampled ones to the first."""
    requests = []
    for seed, prompt in enumerate(prompts):
        for temperature in (0.0, 1.0) if seed == 0 else (0.0,):
            request = GenerationRequest(
                f"{prompt.id}-{temperature}",
                prompt,
                num_completions=2 if temperature else 1,
                temperature=temperature,
                max_tokens=NUM_TOKENS,
                seed=seed,
            )
            requests.append(request)
    return requests


@pytest.mark.real
@pytest.mark.parametrize("case", parameters(ON_CPU))
def test_engine_equals_transformers(case: Case, store: ImageStore) -> None:
    asyncio.run(_check(case, store))


@torch.no_grad()
async def _check(case: Case, store: ImageStore) -> None:
    engine = engine_of(case)
    hub = HubPolicy(case, getattr(torch, case.engine_dtype))
    try:
        requests = requests_of(prompts_of(case, store))
        for request, group in zip(
            requests, await engine.generate(requests), strict=True
        ):
            prompt = request.prompt
            ours = engine.encoder.encode_prompt(prompt)
            assert group.prompt_token_ids == ours.token_ids == hub.prompt_ids(prompt)
            assert group.num_image_tokens == ours.num_image_tokens
            for completion in group.completions:
                answer = completion.token_ids
                scored = await engine.token_logprobs(prompt, answer)
                expected = hub.token_logprobs(prompt, answer)
                error = (torch.tensor(scored) - expected).abs().max()
                assert error <= case.engine_tolerance
                if request.temperature == 0:
                    _check_greedy(engine.encoder, hub, prompt, answer, case)
        await _check_that_pictures_count(engine, hub, store, case)
    finally:
        await engine.close()


def _check_greedy(
    encoder: Any, hub: HubPolicy, prompt: Prompt, answer: tuple[int, ...], case: Case
) -> None:
    """No other token is likelier at any place, by more than the tolerance."""
    logits = hub.logits(prompt, answer)[:-1].float()
    logits[:, list(encoder.media_token_ids)] = -torch.inf
    taken = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert (logits.max(1).values - taken).max() <= case.engine_tolerance


async def _check_that_pictures_count(
    engine: Any, hub: HubPolicy, store: ImageStore, case: Case
) -> None:
    """A blank picture changes the answer's log-probs, in the engine as in transformers."""
    prompt = prompts_of(case, store)[0]
    answer = engine.encoder.encode_response("There is a red circle.")
    grey = ask("grey", blank(case.sizes[0], store))
    changes = []
    for score in (engine.token_logprobs, _scored_by(hub)):
        seen = torch.tensor(await score(prompt, answer))
        unseen = torch.tensor(await score(grey, answer))
        changes.append(seen - unseen)
    assert changes[1].abs().max() > max(case.engine_tolerance, 0.1)
    assert (changes[0] - changes[1]).abs().max() <= 2 * case.engine_tolerance


def _scored_by(hub: HubPolicy) -> Any:
    async def score(prompt: Prompt, answer: tuple[int, ...]) -> list[float]:
        return hub.token_logprobs(prompt, answer).tolist()  # type: ignore[no-any-return]

    return score


def test_gemma3_is_refused_on_a_cpu() -> None:
    message = "whose image tokens see each other in both directions, which vLLM leaves out on a CPU"
    with pytest.raises(UserError, match=message):
        engine_of(GEMMA3)


@pytest.mark.real
def test_gemma3_would_be_another_model_on_a_cpu(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompt tokens are right. When its log-probs are, too, the refusal can go."""
    monkeypatch.setattr(actors.engine.arguments, "check_cpu_engines", lambda *_: None)
    asyncio.run(_check_gemma3(store))


@torch.no_grad()
async def _check_gemma3(store: ImageStore) -> None:
    engine, hub = engine_of(GEMMA3), HubPolicy(GEMMA3)
    try:
        for prompt in prompts_of(GEMMA3, store):
            (group,) = await engine.generate(
                [GenerationRequest("g", prompt, 1, temperature=0.0, max_tokens=4)]
            )
            assert group.prompt_token_ids == hub.prompt_ids(prompt)
            answer = group.completions[0].token_ids
            scored = torch.tensor(await engine.token_logprobs(prompt, answer))
            expected = hub.token_logprobs(prompt, answer)
            assert (scored - expected).abs().max() > 1e-3
            hub.hidden_inputs = ("token_type_ids",)
            causal = hub.token_logprobs(prompt, answer)
            hub.hidden_inputs = ()
            assert (scored - causal).abs().max() <= 1e-5
    finally:
        await engine.close()
