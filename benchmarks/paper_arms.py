"""The arms of `benchmarks.paper_table`: what each method trains on, and with which preset and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.pair_edits import Edit, of_equal_length, without_end

Metrics: TypeAlias = tuple[tuple[str, str], ...]
"""(key, heading) of the columns of a table."""
POLICY_JUDGE = ("--reward.judge.kind", "policy")
JUDGE = "runs/tabletop_judge/run/policy"
"""What `benchmarks.tabletop_judge` makes."""
VLM_JUDGE = (*POLICY_JUDGE, "--reward.judge.path", JUDGE)
ON_POLICY = ("--loop.max_staleness", "0")


@dataclass(frozen=True, slots=True)
class World:
    """Where the arms are compared.

    Attributes:
        words: for `cluster.generate`, so that a pair set is of this world.
        policy: the start policy; None where it is everybody's default.
        metrics: of the table.
    """

    words: tuple[str, ...]
    policy: str | None
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class PairSet:
    """An offline pair set.

    Attributes:
        words: for `cluster.generate`, after which --out, --count and --seed follow.
        source: the set that this one is made of, by `edit`; then there are no words.
    """

    words: tuple[str, ...] = ()
    source: str | None = None
    edit: Edit | None = None

    def words_in(self, world: World) -> list[str]:
        """The words, and those of a world."""
        words = [*self.words, *world.words]
        if world.policy is not None and "bdhs" in words:
            words += ["--model.path", world.policy]
        return words


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a preset, an offline pair set or none, and overrides.

    Attributes:
        world: the only one that has it; None for a row of all worlds.
    """

    title: str
    preset: str
    pairs: str | None = None
    words: tuple[str, ...] = ()
    world: str | None = None

    def words_in(self, world: World) -> list[str]:
        """The overrides, and where the start policy is the judge, which one it is."""
        words = list(self.words)
        names_judge = "--reward.judge.path" in words
        asks_policy = set(POLICY_JUDGE) <= set(words)
        if world.policy is not None and asks_policy and not names_judge:
            words += ["--reward.judge.path", world.policy]
        return words


SHAPES_METRICS = (
    ("chair_s", "CHAIR_s ↓"),
    ("chair_i", "CHAIR_i ↓"),
    ("recall", "recall ↑"),
    ("mean_length", "words"),
    ("pope_accuracy", "POPE acc. ↑"),
    ("pope_f1", "POPE F1 ↑"),
    ("pope_yes_ratio", "yes ratio"),
    ("win_rate", "win rate ↑"),
)
TABLETOP_METRICS = (
    ("chair_i", "CHAIR_i ↓"),
    ("recall", "recall ↑"),
    ("attribute_errors", "colours ↓"),
    ("relation_errors", "places, relations ↓"),
    ("count_errors", "numbers ↓"),
    ("mean_length", "words"),
    ("pope/adversarial/f1", "POPE adv. F1 ↑"),
    ("pope_f1", "POPE F1 ↑"),
    ("lc_win_rate", "win rate, equal length ↑"),
)
WORLDS = {
    "shapes": World((), None, SHAPES_METRICS),
    "tabletop": World(
        ("--data.prompts.kind", "tabletop"),
        "common/tabletop/policy",
        TABLETOP_METRICS,
    ),
}


def _bdhs(*words: str) -> PairSet:
    return PairSet(("bdhs", *words))


PAIR_SETS = {
    "povid": PairSet(("povid", "--corrupter", "rules")),
    "attention-0.3": _bdhs("--rho", "0.3"),
    "attention-0.5": _bdhs("--rho", "0.5"),
    "attention-0.7": _bdhs("--rho", "0.7"),
    "noise": _bdhs("--variant", "noise"),
    "unguided": _bdhs("--variant", "unguided", "--rho", "0.5"),
    "no-yes-no": _bdhs("--rho", "0.5", "--rollout.bdhs.yes_no", "neither"),
    "unguided-no": _bdhs(
        "--variant", "unguided", "--rho", "0.5", "--rollout.bdhs.yes_no", "no"
    ),
    "no-end": PairSet(source="attention-0.5", edit=without_end),
    "equal-length": PairSet(source="attention-0.5", edit=of_equal_length),
}

SUPERVISED = ("--learner.loss.beta", "1e-6", "--learner.loss.nll_weight", "1")
"""The preference term has no gradient to speak of: what is left is SFT on the chosen answers."""
ANCHOR = ("--learner.loss.nll_weight", "1")

ARMS = {
    "sft": Arm("SFT on the references", "offline", "povid", SUPERVISED),
    "sft-bdhs": Arm(
        "SFT on the chosen answers of BDHS 0.5", "offline", "attention-0.5", SUPERVISED
    ),
    "offline-povid": Arm("offline DPO, POVID-style pairs", "offline", "povid"),
    "offline-bdhs-0.3": Arm(
        "offline DPO, BDHS attention, ρ 0.3", "offline", "attention-0.3"
    ),
    "offline-bdhs-0.5": Arm(
        "offline DPO, BDHS attention, ρ 0.5", "offline", "attention-0.5"
    ),
    "offline-bdhs-0.7": Arm(
        "offline DPO, BDHS attention, ρ 0.7", "offline", "attention-0.7"
    ),
    "offline-noise": Arm("offline DPO, BDHS noise", "offline", "noise"),
    "offline-unguided": Arm("offline DPO, BDHS unguided, ρ 0.5", "offline", "unguided"),
    "offline-povid-nll": Arm(
        "offline DPO, POVID-style pairs, NLL 1", "offline", "povid", ANCHOR
    ),
    "povid-stage-2": Arm(
        "POVID's second stage", "offline", "povid", ("--learner.loss.kind", "povid")
    ),
    "offline-bdhs-0.5-nll": Arm(
        "offline DPO, BDHS attention, ρ 0.5, NLL 1", "offline", "attention-0.5", ANCHOR
    ),
    "offline-bdhs-0.5-mdpo": Arm(
        "offline mDPO, BDHS attention, ρ 0.5",
        "offline",
        "attention-0.5",
        ("--learner.loss.kind", "mdpo"),
    ),
    "offline-bdhs-0.5-mpo": Arm(
        "offline MPO, BDHS attention, ρ 0.5",
        "offline",
        "attention-0.5",
        ("--learner.loss.kind", "mpo"),
    ),
    "offline-bdhs-0.5-no-end": Arm(
        "offline DPO, BDHS attention, ρ 0.5, no end token", "offline", "no-end"
    ),
    "offline-bdhs-0.5-equal-length": Arm(
        "offline DPO, BDHS attention, ρ 0.5, sides of equal length",
        "offline",
        "equal-length",
    ),
    "offline-bdhs-0.5-no-yes-no": Arm(
        "offline DPO, BDHS attention, ρ 0.5, no yes/no pairs", "offline", "no-yes-no"
    ),
    "offline-bdhs-0.5-no-yes-no-mdpo": Arm(
        "offline mDPO, BDHS attention, ρ 0.5, no yes/no pairs",
        "offline",
        "no-yes-no",
        ("--learner.loss.kind", "mdpo"),
    ),
    "offline-unguided-no-mdpo": Arm(
        "offline mDPO, BDHS unguided, ρ 0.5, no pairs that prefer yes (ours)",
        "offline",
        "unguided-no",
        ("--learner.loss.kind", "mdpo"),
    ),
    "online": Arm("online DPO, oracle judge", "online"),
    "online-worth": Arm(
        "online DPO, oracle judge, prompts by worth (ours)",
        "online",
        None,
        ("--rollout.draw", "by_worth"),
    ),
    "online-weak": Arm(
        "online DPO, weak judge (the start policy)", "online", None, POLICY_JUDGE
    ),
    "online-vlm": Arm(
        "online DPO, VLM judge (taught on unbiased scenes)",
        "online",
        None,
        VLM_JUDGE,
        world="tabletop",
    ),
    "online-bdhs": Arm("online BDHS, ρ 0.5", "online_bdhs"),
    "mixed": Arm("Mixed-DPO, oracle judge + BDHS 0.5", "mixed", "attention-0.5"),
    "mixed-worth": Arm(
        "Mixed-DPO, oracle judge by worth (ours) + BDHS 0.5",
        "mixed",
        "attention-0.5",
        ("--rollout.draw", "by_worth"),
    ),
    "mixed-0.25": Arm(
        "Mixed-DPO, a quarter online",
        "mixed",
        "attention-0.5",
        ("--mixture.online_fraction", "0.25"),
    ),
    "mixed-0.75": Arm(
        "Mixed-DPO, three quarters online",
        "mixed",
        "attention-0.5",
        ("--mixture.online_fraction", "0.75"),
    ),
    "mixed-weak": Arm(
        "Mixed-DPO, weak judge + BDHS 0.5", "mixed", "attention-0.5", POLICY_JUDGE
    ),
    "mixed-ipo": Arm(
        "Mixed, IPO, β 0.9",
        "mixed",
        "attention-0.5",
        ("--learner.loss.kind", "ipo", "--learner.loss.beta", "0.9"),
    ),
    "mixed-hinge": Arm(
        "Mixed, SLiC hinge, β 0.1",
        "mixed",
        "attention-0.5",
        ("--learner.loss.kind", "hinge"),
    ),
    "rloo": Arm(
        "RLOO, oracle judge, k 4, β 0.4",
        "online",
        None,
        (
            "--learner.loss.kind",
            "rloo",
            "--learner.loss.beta",
            "0.4",
            *ON_POLICY,
        ),
    ),
    # As many rollouts as RLOO: both train on all completions of a group.
    "grpo": Arm(
        "GRPO, oracle judge, k 4, β 0.04",
        "online",
        None,
        ("--learner.loss.kind", "grpo", *ON_POLICY),
    ),
}


def arms_of(world: str) -> dict[str, Arm]:
    """The rows of a world's table."""
    return {name: arm for name, arm in ARMS.items() if arm.world in (None, world)}
