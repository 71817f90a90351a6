"""Measures a policy on prompts it was not trained on, beside the policy it started from.

    python -m cluster.evaluate runs/first/policy --baseline common/shapes/policy
    python -m cluster.evaluate --model.path DIR --data.prompts mine.jsonl
    python -m cluster.evaluate judge data/labelled

The third measures a judge, see `python -m cluster.evaluate judge --help`.

The suites, the judge and the engine are those of a config. Without `--preset` it is the config of the run that left the
policy; the start policy of a rendered world is measured as its presets say. Another policy needs `--preset FILE`, or
suites on the command line (`--evaluation.suites '["shapes"]'`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import evaluate_judge
from cluster.entry import add_preset, command_parser, exit_status, parse_line
from cluster.flags import EVALUATE_FLAGS
from cluster.runtime.ray_job import check_output_path
from common.command_line.keys import is_below
from common.config import SHAPES_POLICY, TABLETOP_POLICY, Evaluation, PromptsSuite
from common.config.flags import Flag, add_flags, given_flags
from common.config.jobs import EvaluateConfig, EvaluateSettings
from common.config.judges import user_judges
from common.config.overrides import describe_keys, keys_and_words, load
from common.errors import UserError
from common.loading import check_folder
from common.paths import check_output_file

if TYPE_CHECKING:
    from cluster.evaluation.measure import Evaluator
    from cluster.evaluation.measured import Measured
    from common.protocols import Runtime
    from reward.suites.scorecard import Scorecard

WORLD_PRESETS = {
    SHAPES_POLICY: Path(__file__).parent / "configs" / "shapes_online.toml",
    TABLETOP_POLICY: Path(__file__).parent / "configs" / "tabletop_online.toml",
}
"""Start policy of a rendered world -> the preset that says how it is measured."""
SCORECARD = "scorecard.json"
(POLICY,) = (flag for flag in EVALUATE_FLAGS if flag.name == "policy")
JUDGE = "reward.judge"
_SECTIONS_OF_A_RUN = {"run", "model", "evaluation"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the policies are measured, else as cluster.entry says."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["judge"]:
        return evaluate_judge.main(words[1:])

    def call() -> None:
        measure_policies(config_of(argv))

    return exit_status(
        call,
        "interrupted; run the same command again, which with --out goes on where it was",
    )


def measure_policies(config: EvaluateConfig) -> dict[str, Scorecard]:
    """Measure the policies, print their scorecards and write what was asked for; by name, `start` before `policy`.

    Raises:
        UserError: an input is wrong, or there is nothing to measure.
    """
    from cluster.jobs.event_loop import run_async

    # Where the config is not of a command line.
    config = _with_scenes(_with_file(config))
    _check_policies(config)
    _check_outputs(config.evaluate)
    return run_async(_run(config))


def config_of(argv: Sequence[str] | None = None) -> EvaluateConfig:
    """The config that a command line asks for (UserError as `load`)."""
    arguments, overrides = parse_line(_parser(), argv)
    given = given_flags(arguments, EVALUATE_FLAGS)
    words = dict(keys_and_words(overrides))
    for flag, word in given.items():
        words.setdefault(flag.key, word)
    policy = _policy_of(words, given)
    if policy is not None:
        given[POLICY] = policy
    preset: Path | None = arguments.preset
    runs_preset: Path | None = None
    if preset is None and policy is not None:
        preset = runs_preset = preset_of(Path(policy))
        if preset is not None:
            print(f"measured as {preset} says", file=sys.stderr)
    overrides = [*overrides, *_measured_prompts(words)]
    config = load(EvaluateConfig, preset, overrides, given, EVALUATE_FLAGS)
    if runs_preset is not None:
        _refuse_code_of_a_run(config, runs_preset, words)
    return _with_scenes(_with_prompts(config, words))


def _refuse_code_of_a_run(
    config: EvaluateConfig,
    preset: Path,
    words: Mapping[str, str],
) -> None:
    """Whoever measures somebody's run names a judge that is code (UserError): its config alone starts none."""
    # Nothing is judged without a baseline.
    if config.evaluate.baseline is None:
        return
    judge_words = [word for key, word in words.items() if is_below(key, [JUDGE])]
    for judge in user_judges(config.reward.judge):
        # Another word about the judge, such as its timeout, is not its name.
        if any(judge.target in word for word in judge_words):
            continue
        raise UserError(
            f"reward.judge: expected you to name a judge that is code, because {preset} names {judge.target} and "
            f"nothing else asked for it; look at it and add --reward.judge.kind {judge.target}, or another judge"
        )


def _policy_of(words: Mapping[str, str], given: Mapping[Flag, str]) -> str | None:
    """The policy that a command line names, by its place or as `--model.path` (UserError when these differ)."""
    by_place = given.get(POLICY)
    by_key = words.get("model.path")
    if by_place is not None and by_key not in (None, by_place):
        raise UserError(
            f"POLICY_DIR and --model.path: expected one policy, got {by_place} and {by_key}; give one of them"
        )
    return words.get("evaluate.policy", by_key)


def _measured_prompts(words: Mapping[str, str]) -> list[str]:
    """Overrides that make `--data.prompts` the prompts of the split, where the command line names no others."""
    split = words.get("evaluate.split", "test")
    path = words.get("data.prompts.path", words.get("data.prompts"))
    if path is None or any(is_below(key, [f"data.{split}"]) for key in words):
        return []
    overrides = [f"--data.{split}.kind=file", f"--data.{split}.path={path}"]
    if "data.prompts.rows" in words:
        overrides.append(f"--data.{split}.rows={words['data.prompts.rows']}")
    return overrides


def _with_prompts(config: EvaluateConfig, words: Mapping[str, str]) -> EvaluateConfig:
    """The config with a suite of prompts, where the command line names prompts and no suites."""
    suites = config.evaluation.suites
    names_prompts = any(is_below(key, ["data"]) for key in words)
    names_suites = any(is_below(key, ["evaluation.suites"]) for key in words)
    has_one = any(isinstance(suite, PromptsSuite) for suite in suites)
    if names_suites or has_one or not names_prompts:
        return config
    update = {"suites": (*suites, PromptsSuite())}
    evaluation = config.evaluation.model_copy(update=update)
    return config.model_copy(update={"evaluation": evaluation})


def preset_of(policy: Path) -> Path | None:
    """The config that a policy belongs to: its run's, or the preset of a rendered world for its start policy."""
    resolved = policy.resolve()
    # A run holds RUN/policy and RUN/checkpoints/STEP/policy.
    for folder in resolved.parents[:3]:
        config_file = folder / "config.json"
        if _is_config_of_a_run(config_file):
            return config_file
    for start_policy, preset in WORLD_PRESETS.items():
        if resolved == Path(start_policy).resolve():
            return preset
    return None


def _is_config_of_a_run(path: Path) -> bool:
    # Models have a config.json as well.
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= _SECTIONS_OF_A_RUN


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m cluster.evaluate",
        __doc__ or "",
        f"config keys:\n{describe_keys(EvaluateConfig)}",
    )
    add_flags(parser, EVALUATE_FLAGS)
    add_preset(parser)
    return parser


def _check_policies(config: EvaluateConfig) -> None:
    check_folder(config.evaluate.policy, "policy")
    if config.evaluate.baseline is not None:
        check_folder(config.evaluate.baseline, "--baseline")


def _check_outputs(settings: EvaluateSettings) -> None:
    """Find out before the work whether its results can be written (UserError, OSError)."""
    outputs = [path for path in (settings.out, settings.samples) if path is not None]
    if len(outputs) == 2 and outputs[0].absolute() == outputs[1].absolute():
        raise UserError(
            f"--samples: expected another file than --out, got {outputs[0]} twice; name the page otherwise"
        )
    for output in outputs:
        check_output_path(output, "--out and --samples")
        check_output_file(output)


def _with_file(config: EvaluateConfig) -> EvaluateConfig:
    """The config with a file as output, where a folder is named."""
    out = config.evaluate.out
    if out is None or not out.is_dir():
        return config
    evaluate = config.evaluate.model_copy(update={"out": out / SCORECARD})
    return config.model_copy(update={"evaluate": evaluate})


def _without_select(config: EvaluateConfig) -> EvaluateConfig:
    """The config of a run may select by a suite that is not measured here, where nothing is picked."""
    evaluation = config.evaluation.model_copy(update={"select": None})
    return config.model_copy(update={"evaluation": evaluation})


def _with_scenes(config: EvaluateConfig) -> EvaluateConfig:
    """The config with `evaluate.scenes` in every suite that has scenes (UserError when none has)."""
    num_scenes = config.evaluate.scenes
    if num_scenes is None:
        return config
    key = f"{config.evaluate.split}_scenes"
    suites = []
    has_scenes = False
    for suite in config.evaluation.suites:
        update: dict[str, Any] = {}
        if key in type(suite).model_fields:
            update[key] = num_scenes
            has_scenes = True
        suites.append(suite.model_copy(update=update))
    if config.evaluation.suites and not has_scenes:
        raise UserError(
            f"--scenes (evaluate.scenes): expected a suite with {key}, got none; leave it out"
        )
    evaluation: Evaluation = config.evaluation.model_copy(
        update={"suites": tuple(suites)}
    )
    return config.model_copy(update={"evaluation": evaluation})


async def _run(config: EvaluateConfig) -> dict[str, Scorecard]:
    from cluster.evaluation.measure import Evaluator
    from cluster.evaluation.policies import PolicyMeasuring
    from cluster.placement.bundles import measuring_plan
    from cluster.runtime.judge_check import checked_judge
    from cluster.runtime.ray_runtime import RayRuntime
    from common.chat import check_model
    from common.data.images import ImageStore

    settings = config.evaluate
    # Nothing is judged without a policy to compare with.
    if settings.baseline is not None:
        config = checked_judge(config)
    # The samples page inlines its pictures, so the folder may go once it is written.
    with tempfile.TemporaryDirectory(prefix="sightline-images-") as folder:
        evaluator = Evaluator(_without_select(config), ImageStore(Path(folder)))
        _check_prompts(evaluator, config)
        # Before Ray starts: what is wrong with a model directory is said at once.
        for directory in (settings.baseline, settings.policy):
            if directory is not None:
                check_model(config.model, directory)
        bundles = measuring_plan(config, judges=settings.baseline is not None)
        runtime = RayRuntime(config.cluster, bundles, f"evaluate {settings.policy}")
        try:
            await _check_pictures(Path(folder), runtime, config)
            measuring = PolicyMeasuring(config, evaluator, runtime, settings.out)
            measured = await measuring.run()
        finally:
            runtime.shutdown()
        cards = _write(evaluator, config, measured)
        measuring.forget()
        return cards


async def _check_pictures(
    folder: Path, runtime: Runtime, config: EvaluateConfig
) -> None:
    """Refuse (UserError) nodes that do not see the pictures of the suites, where any were made."""
    from cluster.runtime.shared_files import SharedFiles

    if any(folder.iterdir()):
        files = SharedFiles("TMPDIR", folder)
        await files.check_nodes(runtime, config.loop.call_timeout_s)


def _write(
    evaluator: Evaluator,
    config: EvaluateConfig,
    measured: dict[str, Measured],
) -> dict[str, Scorecard]:
    """Print the scorecards and write what was asked for; returns the scorecards."""
    from cluster.evaluation.measured import write_answer_files
    from cluster.evaluation.samples_page import write_samples
    from cluster.report import print_scorecards, write_scorecards

    settings = config.evaluate
    start = measured.get("start")
    if start is not None:
        start_card = evaluator.start_card(start, measured["policy"])
        start = replace(start, card=start_card)
        measured["start"] = start
    cards = {name: policy.card for name, policy in measured.items()}
    # Printed first: what was measured must outlive an output that cannot be written.
    print_scorecards(cards)
    if settings.out is not None:
        write_scorecards(settings.out, cards)
        for name, policy in measured.items():
            folder = settings.out.with_suffix(".answers") / name
            write_answer_files(folder, evaluator.suites, policy.answers, name)
    if settings.samples is not None:
        write_samples(
            settings.samples,
            evaluator.suites,
            measured["policy"],
            start,
            config.evaluation.samples_shown,
            f"{settings.policy} on the {settings.split} split",
        )
    return cards


def _check_prompts(evaluator: Evaluator, config: EvaluateConfig) -> None:
    """Refuse (UserError) to start engines when there is nothing to measure."""
    split = config.evaluate.split
    if evaluator.num_items(split) > 0:
        return
    missing = evaluator.gate(split).missing
    if missing is None:
        return
    if config.evaluation.pairs is not None:
        raise UserError(
            f"evaluation.pairs: expected pairs to measure with, got none: {missing}; repair the rows, or name suites"
        )
    raise UserError(
        f"evaluation.suites: expected suites with prompts of the {split} split, or evaluation.pairs, got none; "
        """name some: --evaluation.suites '["shapes"]', or --preset FILE"""
    )


if __name__ == "__main__":
    sys.exit(main())
