"""BDHS as an online source of pairs (arXiv 2407.02477, section 3.4): the rejected side comes from the current policy.

y+ is the prompt's reference answer. The paper does not say when y- is drawn anew; here every pair is drawn once, from
the weights that the engine holds at that time, and goes stale like any online pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from actors.bdhs.sampling import Generate, Outcome, generate_pairs
from actors.bdhs.similarity import make_similarity
from common.config import RunConfig
from common.protocols import GenerationRequest
from common.records import Dropped, PreferencePair, Prompt, RolloutGroup
from common.seeding import derive_seed
from common.sources import ONLINE_BDHS


class OnlineBdhsSampler:
    """Draws pairs with the settings of `rollout.bdhs`.

    Args:
        config: the run's; draws come from (run.seed, rollout.bdhs.seed, group id).
        num_image_tokens: of a prompt (see `actors.bdhs.sampling.generate_pairs`).

    Raises:
        UserError: the similarity measure is not installed or not found.
    """

    def __init__(
        self, config: RunConfig, num_image_tokens: Callable[[Prompt], int]
    ) -> None:
        settings = config.rollout.bdhs
        seed = derive_seed(config.run.seed, "bdhs", settings.seed)
        self._settings = settings.model_copy(update={"seed": seed})
        self._similarity = make_similarity(settings.similarity)
        self._num_image_tokens = num_image_tokens

    async def pairs(
        self, groups: Sequence[tuple[str, Prompt]], generate: Generate
    ) -> list[PreferencePair | Dropped]:
        """One pair or reason per (group id, prompt), in order; reasons as in `actors.bdhs.sampling`."""
        attempts = _AttemptVersions(generate)
        # A prompt comes back in later epochs under other group ids, and is to be cut and masked anew then.
        renamed = []
        for group_id, prompt in groups:
            renamed.append(replace(prompt, id=group_id))
        outcomes: dict[str, Outcome] = {}
        async for outcome in generate_pairs(
            iter(renamed),
            attempts.generate,
            config=self._settings,
            similarity=self._similarity,
            num_image_tokens=self._num_image_tokens,
            window=len(groups),
        ):
            outcomes[outcome.prompt_id] = outcome

        results = []
        for group_id, prompt in groups:
            outcome = outcomes[group_id]
            results.append(_result(outcome, prompt, attempts))
        return results


class _AttemptVersions:
    """Passes requests on and remembers the oldest weight version that sampled a token of each attempt."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate
        self._oldest: dict[str, int] = {}

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> Sequence[RolloutGroup | Dropped]:
        results = await self._generate(requests)
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Dropped):
                continue
            # Request ids are "prompt/attempt/sentence".
            attempt = request.id.rpartition("/")[0]
            for completion in result.completions:
                version = completion.min_weight_version
                oldest = self._oldest.get(attempt, version)
                self._oldest[attempt] = min(version, oldest)
        return results

    def oldest(
        self,
        prompt_id: str,
        number: int,
    ) -> int:
        return self._oldest[f"{prompt_id}/{number}"]


def _result(
    outcome: Outcome, prompt: Prompt, attempts: _AttemptVersions
) -> PreferencePair | Dropped:
    if isinstance(outcome.result, Dropped):
        return outcome.result
    version = attempts.oldest(outcome.prompt_id, outcome.attempts)
    # The pair is about the prompt as the loop knows it, not about its copy under the group id.
    return replace(
        outcome.result,
        id=outcome.prompt_id,
        prompt=prompt,
        source=ONLINE_BDHS,
        weight_version=version,
    )
