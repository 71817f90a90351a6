"""What a run starts from: its prompts and offline pairs, and whether they fit what the config wants of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.worlds import world_prompts
from common.chat import ChatEncoder, encoder_of
from common.config import PromptFile, RunConfig
from common.data.images import ImageStore
from common.data.pairs_on_disk import PairsOnDisk, open_pairs
from common.data.prompt_sources import load_split
from common.data.records_on_disk import RecordsOnDisk, usable
from common.errors import UserError
from common.prompts.survey import PromptsOnDisk, has_facts
from common.records import Dropped, PreferencePair, Prompt
from common.row_faults import drop_report
from common.sources import ONLINE_BDHS, WITH_ADVANTAGES
from learner.anatomy_logps import of_policy

log = logging.getLogger("sightline")

ROWS = "rows"
"""The folder of a run that holds its data in a form of which any row can be read alone. It is written anew at every
start, and deleted at the end of the training."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Prompts to sample from, and offline pairs."""

    prompts: Sequence[Prompt]
    offline: Sequence[PreferencePair]


def load_training_data(
    config: RunConfig,
    store: ImageStore,
    dropped: list[Dropped],
) -> TrainingData:
    """What a run starts from; rows that cannot be used are appended to `dropped`.

    Raises:
        UserError: the data does not fit what the config wants of it.
    """
    prompts = load_prompts(config, store, dropped)
    offline = load_offline(config, dropped)
    check_sources(config, offline)
    return TrainingData(prompts, offline)


def load_prompts(
    config: RunConfig,
    store: ImageStore,
    dropped: list[Dropped],
) -> Sequence[Prompt]:
    """The prompts to sample from; rows that cannot be read are appended to `dropped`.

    Raises:
        UserError: there is no usable prompt, or none has what an online source needs: a reference answer, or truth.
    """
    source = config.data.prompts
    prompts: Sequence[Prompt]
    if not isinstance(source, PromptFile):
        prompts = world_prompts(source, source.seed, store)
    else:
        cache = config.run.dir / ROWS
        prompts = load_split(config.data, "train", store, dropped, cache)
        if isinstance(prompts, RecordsOnDisk):
            strip = encoder_of(config.model).without_end_mark
            prompts = prompts.changed(_EndMarks(strip).off_reference)
    _check_first(prompts)
    _check_prompts(config, prompts)
    return prompts


class _EndMarks:
    """Takes written-out end marks off references as prompts are read: online BDHS trains on them as answers."""

    def __init__(self, strip: Callable[[str], str]) -> None:
        self._strip = strip
        self._was_said = False

    def off_reference(self, prompt: Prompt) -> Prompt:
        """The prompt with a reference that ends with its text; the first change is said."""
        if prompt.reference is None:
            return prompt
        reference = self._strip(prompt.reference)
        if reference == prompt.reference:
            return prompt
        if not self._was_said:
            log.warning(
                "data.prompts: takes the end marks off that are written out behind references, such as that of %s",
                prompt.id,
            )
            self._was_said = True
        return replace(prompt, reference=reference)


def _check_first(prompts: Sequence[Prompt]) -> None:
    """Look for a prompt that can be used (UserError when there is none): engines take minutes to start."""
    unusable: list[Dropped] = []
    for _ in usable(prompts, unusable):
        return
    raise UserError(
        f"data.prompts: expected at least one usable prompt, got none; dropped {len(unusable)} rows: "
        f"{drop_report(unusable)}; repair the rows, or give a set that has some"
    )


def load_offline(config: RunConfig, dropped: list[Dropped]) -> Sequence[PreferencePair]:
    """The offline pairs of all sets, none when the mixture wants none; rows with an id twice are appended to `dropped`.

    A pair is read when it is used, and may turn out to be unusable then. It has no weight version, whatever run sampled
    it: staleness counts the versions of this run. Its id differs from those of this run's online pairs. Answers with
    tokens of another policy's tokenizer are read as text.

    Raises:
        UserError: there are rows, and none is usable.
    """
    offline = config.data.offline
    if offline is None or min(config.mixture.fractions) == 1:
        return []
    folders = [Path(path) for path in offline.paths]
    pairs = open_pairs(folders, config.run.dir / ROWS, dropped, _offline_id)
    pairs = pairs.changed(_ForThisPolicy(encoder_of(config.model)))
    unusable: list[Dropped] = []
    for _ in usable(pairs, unusable):
        break
    else:
        if len(pairs):
            raise UserError(
                f"data.offline: expected at least one usable pair, got none of {len(pairs)} rows; dropped "
                f"{drop_report(unusable)}; repair the rows"
            )
    return pairs


class _ForThisPolicy:
    """Makes an offline pair one of this run. The first end mark that is taken off an answer is told."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        self._has_told = False

    def __call__(self, pair: PreferencePair) -> PreferencePair:
        readable = of_policy(pair, self._encoder)
        changed = (readable.chosen.text, readable.rejected.text) != (
            pair.chosen.text,
            pair.rejected.text,
        )
        if changed and not self._has_told:
            self._has_told = True
            log.warning(
                "data.offline: took the end mark that was written out behind an answer off, such as in pair %s",
                pair.id,
            )
        return replace(readable, id=_offline_id(pair.id), weight_version=None)


def check_sources(config: RunConfig, offline: Sequence[PreferencePair]) -> None:
    """Check that the losses fit the sources of pairs.

    Raises:
        UserError: a loss is for a source that this run does not have, or a policy gradient for pairs without fresh
            advantages.
    """
    online_sources = set(_online_sources(config))
    if isinstance(offline, PairsOnDisk):
        offline_sources = set(offline.sources)
    else:
        offline_sources = {pair.source for pair in offline}
    known = sorted(online_sources | offline_sources)
    unknown = sorted(set(config.learner.source_losses).difference(known))
    if unknown:
        raise UserError(
            f"learner.source_losses: expected sources of this run ({', '.join(known)}), got "
            f"{', '.join(unknown)}; correct the name or leave it out"
        )
    # A judged group's pairs alone hold advantages, and only while they are fresh.
    without_advantages = (online_sources - WITH_ADVANTAGES) | offline_sources
    wrong: dict[str, str] = {}
    for source in sorted(without_advantages):
        loss = config.learner.loss_of(source)
        if loss.reads_advantages:
            wrong[source] = loss.kind
    if wrong:
        source, kind = next(iter(wrong.items()))
        raise UserError(
            f"learner.loss.kind: {kind} expects freshly judged groups, got pairs of {', '.join(wrong)}; give them a "
            f"loss of their own (learner.source_losses.{source}.kind) or set mixture.online_fraction = 1"
        )


def _check_prompts(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    sources = _online_sources(config)
    if isinstance(prompts, PromptsOnDisk):
        has_reference, has_truth = prompts.has_reference, prompts.has_truth
    else:
        has_reference = any(prompt.reference for prompt in prompts)
        has_truth = any(map(has_facts, prompts))
    if ONLINE_BDHS in sources and not has_reference:
        raise UserError(
            f"data.prompts: expected prompts with reference answers for mixture.online_bdhs_fraction = "
            f"{config.mixture.online_bdhs_fraction}, got none among {len(prompts)}; add them or set it to 0"
        )
    # One prompt that serves is enough: the others are dropped and counted on the way.
    needs_truth = config.reward.judge.kind == "rules"
    if config.judged_source in sources and needs_truth and not has_truth:
        raise UserError(
            f"data.prompts: expected prompts with truth for reward.judge.kind = rules, got none among {len(prompts)}; "
            "name a judge of your own, such as --reward.judge.kind my_judge.py:score, or set "
            "mixture.online_bdhs_fraction = 1: BDHS needs reference answers"
        )


def _online_sources(config: RunConfig) -> tuple[str, ...]:
    is_offline_run = max(config.mixture.fractions) == 0
    return () if is_offline_run else config.online_sources


def _offline_id(id: str) -> str:
    """Online pairs of every run are called `EPOCH:PROMPT_ID`; those of another run must not pass for this one's."""
    first_part = id.partition(":")[0]
    if first_part.isdigit():
        return f"offline:{id}"
    return id
