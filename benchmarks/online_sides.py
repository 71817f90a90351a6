"""Our sides of `benchmarks.online_loop`, each to be run in a process of its own, and the scorecards of all sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.online_cases import BETA, MODEL, PROMPTS, TEMPERATURE, Case

if TYPE_CHECKING:
    from cluster.run_page.store import Call
    from reward.suites.scorecard import SuiteCard

PRESET = "cluster/configs/shapes_online.toml"
STALENESS = {"async": 1, "sync": 0}
"""Side -> how many weight versions its pairs may be behind the learner."""
CORES = 2
"""Of a machine that both sides have whole."""
PARTS = ("time/wait_s", "time/step_s", "time/publish_s")


def ours(case: Case, side: str, folder: Path, started: float) -> dict[str, Any]:
    """A whole run on Ray, an engine and the learner, with a core for each; its figures are those of its journal.

    Args:
        started: when the process began, in seconds since 1970.
    """
    from cluster.library import settings, train
    from cluster.run_page.store import RunStore
    from common.metrics import read_lines

    run_dir = folder / side
    train(settings(run_settings(case, side, folder)))
    store = RunStore(run_dir)
    store.read_all()
    figures = loop_figures(store.work, case.batch, case.warmup, started)
    begin, end = trained_between(store.work, case.warmup)
    idle = idle_fracs(store, begin, end)
    store.close()
    lines = read_lines(run_dir / "metrics.jsonl")
    for part in PARTS:
        # Most steps of a run that seldom publishes have no push.
        seconds = [line.get(part, 0.0) for line in lines[case.warmup :]]
        figures[part] = round(sum(seconds) / len(seconds), 3)
    prefix = "pairs/dropped/"
    dropped = {}
    for name, count in lines[-1].items():
        if name.startswith(prefix):
            dropped[name.removeprefix(prefix)] = int(count)
    preferences = case.steps * case.batch
    return {
        **figures,
        "preferences": preferences,
        "idle_frac": idle,
        "dropped": dropped,
    }


def run_settings(case: Case, side: str, folder: Path) -> dict[str, Any]:
    """The config of our run; what is not here is the default."""
    values: dict[str, Any] = {
        "run.dir": folder / side,
        "run.seed": case.seed,
        "model.path": folder / MODEL,
        "model.dtype": case.dtype,
        "model.max_length": case.max_length,
        "data.prompts.kind": "file",
        "data.prompts.path": folder / PROMPTS,
        "rollout.draw": case.draw,
        "rollout.num_cpus": CORES - case.learner_cpus,
        "rollout.num_completions": 2,
        "rollout.temperature": TEMPERATURE,
        "rollout.max_tokens": case.max_tokens,
        "rollout.engine.kv_cache_bytes": case.kv_cache_mib << 20,
        "rollout.prompts_per_call": case.prompts_per_call,
        # Two answers of every prompt of two calls.
        "rollout.engine.max_num_seqs": 4 * case.prompts_per_call,
        "reward.judge.kind": f"benchmarks.online_judges:{case.judge}",
        "mixture.online_fraction": 1.0,
        "learner.num_cpus": case.learner_cpus,
        "learner.num_steps": case.steps,
        "learner.global_batch": case.batch,
        "learner.micro_batch": case.micro_batch,
        # TRL's trainer has no such gate.
        "learner.grounding_pairs": 0,
        "learner.loss.beta": BETA,
        "learner.optimizer.lr": case.lr,
        "learner.optimizer.max_grad_norm": case.max_grad_norm,
        "learner.optimizer.warmup_steps": 0,
        "learner.optimizer.schedule": case.schedule,
        # Threads that wait give their core to those that work.
        "cluster.env": {"OMP_WAIT_POLICY": "passive"},
        "loop.max_staleness": STALENESS[side],
        "loop.publish_interval": case.publish_interval,
        "checkpoint.interval": case.steps,
    }
    if case.judge == "oracle":
        values["reward.judge.end_id"] = end_id(folder)
    return values


def end_id(folder: Path) -> int:
    """The token that ends an answer of the case's policy."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    return int(tokenizer.eos_token_id)


def trained_between(work: Sequence[Call], warmup: int) -> tuple[float, float]:
    """The ends of the last step that warms up, and of the last step."""
    ends = sorted(call[3] for call in work if call[1] == "train")
    return ends[warmup - 1], ends[-1]


def loop_figures(
    work: Sequence[Call],
    batch: int,
    warmup: int,
    started: float,
) -> dict[str, Any]:
    """Seconds and pairs of the loop of one run.

    `startup_s` lasts until an engine is first asked for answers; a step is what lies between the ends of two, waiting
    and pushes included.
    """
    begin, end = trained_between(work, warmup)
    num_steps = sum(1 for call in work if call[1] == "train")
    sampled = min(call[2] for call in work if call[1] == "sample")
    return rates(end - begin, num_steps - warmup, batch, sampled - started)


def rates(
    seconds: float,
    num_steps: int,
    batch: int,
    startup_s: float,
) -> dict[str, Any]:
    """What every side says of its counted steps."""
    return {
        "pairs_per_s": num_steps * batch / seconds,
        "step_s": seconds / num_steps,
        "startup_s": round(startup_s, 1),
    }


def idle_fracs(store: Any, begin: float, end: float) -> dict[str, float]:
    """Worker -> the share of the counted time in which nothing was asked of it."""
    from cluster.run_page.timeline import timeline

    shares = {}
    for lane in timeline(store, begin, end)["lanes"]:
        if lane["idle_frac"] is not None:
            shares[lane["who"]] = round(lane["idle_frac"], 3)
    return shares


def quality(case: Case, folder: Path) -> dict[str, Any]:
    """The peer's policy beside ours on held-out scenes, the same for both, and the start policy.

    Returns:
        Metric -> `start`, `ours`, `peer`, and peer - ours with its paired 95 % interval.
    """
    from cluster.library import evaluate, settings
    from common.config.jobs import EvaluateConfig

    def measure(**policies: Path) -> dict[str, Any]:
        values: dict[str, Any] = {"evaluate.scenes": case.scenes}
        for name, path in policies.items():
            values[f"evaluate.{name}"] = path
        cards = evaluate(settings(values, PRESET, EvaluateConfig))
        return {name: card.suites["shapes"] for name, card in cards.items()}

    trained = measure(policy=folder / "peer", baseline=folder / "async" / "policy")
    start = measure(policy=folder / MODEL)
    return compared(trained["policy"], trained["start"], start["policy"])


def compared(
    peer: SuiteCard, of_ours: SuiteCard, start: SuiteCard
) -> dict[str, Mapping[str, Any]]:
    """The metrics that have a direction; `peer` was measured with ours as its start policy."""
    rows: dict[str, Mapping[str, Any]] = {}
    for name, change in peer.changes.items():
        rows[name] = {
            "start": start.value(name),
            "ours": of_ours.value(name),
            "peer": peer.value(name),
            "difference": change.value,
            "interval": change.interval,
            "is_equal": not change.verdict,
        }
    return rows
