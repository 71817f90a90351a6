"""What a run starts from: its prompts and offline pairs, and whether they fit what the config wants of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.chat import ChatEncoder
from common.config import PairFile, RunConfig, ShapesPrompts
from common.datasets import read_pairs, read_prompts
from common.errors import UserError
from common.images import ImageStore
from common.records import Dropped, PreferencePair, Prompt
from common.shapes.prompts import caption_prompts
from common.sources import ONLINE_BDHS, RLOO
from learner.anatomy_logps import of_policy


def load_prompts(
    config: RunConfig, store: ImageStore, dropped: list[Dropped]
) -> list[Prompt]:
    """The prompts to sample from; rows that are none are appended to `dropped`.

    Raises:
        UserError: there is no usable prompt, or none has what an online source needs: a reference answer, or truth.
    """
    source = config.data.prompts
    if isinstance(source, ShapesPrompts):
        prompts = caption_prompts("train", source.count, source.seed, store)
    else:
        prompts = read_prompts(Path(source.path), dropped, source.rows)
    if not prompts:
        raise UserError(
            f"data.prompts: expected at least one usable prompt, got none; dropped {len(dropped)} rows"
        )
    _check_prompts(config, prompts)
    return prompts


def load_offline(config: RunConfig, dropped: list[Dropped]) -> list[PreferencePair]:
    """The offline pairs of all sets, none when the mixture wants none; what is left out is appended to `dropped`.

    They are of no weight version, whatever run sampled them: staleness counts this run's versions. None has the id of
    an online pair of this run, nor tokens of another policy's tokenizer: such answers are read as text.
    """
    offline = config.data.offline
    if offline is None or min(config.mixture.fractions) == 1:
        return []
    encoder = ChatEncoder(config.model.path, config.model.max_length)
    pairs: dict[str, PreferencePair] = {}
    for path in _paths(offline):
        for pair in read_pairs(path, dropped):
            pair_id = _offline_id(pair.id)
            if pair_id in pairs:
                dropped.append(
                    Dropped(
                        pair.id,
                        "duplicate_id",
                        f"{path}: an earlier set has a pair of this id",
                    )
                )
            else:
                pairs[pair_id] = replace(
                    of_policy(pair, encoder), id=pair_id, weight_version=None
                )
    return list(pairs.values())


def check_sources(config: RunConfig, offline: Sequence[PreferencePair]) -> None:
    """Refuse (UserError) losses of sources that this run does not have, and rloo for pairs without fresh advantages."""
    online = _online_sources(config)
    known = {*online, *(pair.source for pair in offline)}
    unknown = sorted(set(config.learner.source_losses) - known)
    if unknown:
        raise UserError(
            f"learner.source_losses: expected sources of this run ({', '.join(sorted(known))}), got "
            f"{', '.join(unknown)}; correct the name or leave it out"
        )
    # A judged group's pairs alone hold advantages, and only while they are fresh.
    others = known - ({RLOO} & set(online)) | {pair.source for pair in offline}
    wrong = sorted(
        source for source in others if config.learner.loss_of(source).kind == "rloo"
    )
    if wrong:
        raise UserError(
            f"learner.loss.kind: rloo expects freshly judged groups, got pairs of {', '.join(wrong)}; give them a loss "
            f"of their own (learner.source_losses.{wrong[0]}.kind) or set mixture.online_fraction = 1"
        )


def _check_prompts(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    sources = _online_sources(config)
    if ONLINE_BDHS in sources and not any(prompt.reference for prompt in prompts):
        raise UserError(
            f"data.prompts: expected prompts with reference answers for mixture.online_bdhs_fraction = "
            f"{config.mixture.online_bdhs_fraction}, got none among {len(prompts)}; add them or set it to 0"
        )
    judged = config.judged_source in sources and config.reward.judge.kind == "rules"
    if judged and not any(prompt.truth for prompt in prompts):
        raise UserError(
            f"data.prompts: expected prompts with truth for reward.judge.kind = rules, got none among {len(prompts)}; "
            "add a judge of your own (reward/), or set mixture.online_bdhs_fraction = 1: BDHS needs reference answers"
        )


def _online_sources(config: RunConfig) -> tuple[str, ...]:
    return config.online_sources if max(config.mixture.fractions) else ()


def _offline_id(id: str) -> str:
    """Online pairs of every run have `EPOCH:PROMPT_ID`; those of another run must not pass for this one's."""
    return f"offline:{id}" if id.partition(":")[0].isdigit() else id


def _paths(offline: PairFile) -> list[Path]:
    return [
        Path(path)
        for path in ([offline.path] if isinstance(offline.path, str) else offline.path)
    ]
