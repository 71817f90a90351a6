"""Losses say what they need; nobody else asks which loss it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.config import Learner as LearnerConfig
from common.config import RunConfig
from common.config.losses import loss_sections
from common.sources import GRPO, ONLINE, RLOO
from learner.losses import LOSSES, Needs, NoisedImage, make_loss
from tests.learner.helpers import loss_of_kind

ROOT = Path(__file__).parents[3]
ROOMS = ("actors", "cluster", "common", "learner", "reward")


def test_every_section_has_a_loss() -> None:
    assert set(loss_sections().values()) == set(LOSSES)
    for kind, section in loss_sections().items():
        settings = LearnerConfig.model_validate({"loss": {"kind": kind}}).loss
        assert (type(settings), settings.kind) == (section, kind)


def test_what_losses_need() -> None:
    needs = {kind: make_loss(loss_of_kind(kind)).needs for kind in loss_sections()}
    for kind in ("sigmoid", "robust", "ipo", "hinge", "simpo", "sft"):
        assert needs[kind] == Needs()
    assert needs["mdpo"] == Needs(crop=(0.01, 0.2))
    assert needs["ddpo"] == Needs(changed_tokens=3)
    assert needs["mpo"] == Needs(mean_reward=True)
    noised_image = NoisedImage(step=500, shared_tokens=True)
    assert needs["povid"] == Needs(noised_image=noised_image, plain_rows=True)
    assert needs["rloo"] == Needs(normalised_advantages=True)
    assert needs["grpo"] == Needs(tokens=True)


@pytest.mark.parametrize("kind", loss_sections())
def test_what_is_declared_on_the_settings(kind: str) -> None:
    """The controller asks these without torch."""
    section = loss_sections()[kind]
    assert section.reads_reference == (kind not in ("simpo", "sft"))
    assert section().reads_advantages == (kind in ("rloo", "grpo"))
    assert section.reads_sampling == (kind == "grpo")


def test_a_loss_has_its_settings_only() -> None:
    for loss in ({"kind": "ipo", "gamma": 1.0}, {"kind": "mdpo", "min_match": 2}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            LearnerConfig.model_validate({"loss": loss})


def test_a_source_takes_over_what_its_kind_shares_with_the_runs() -> None:
    """`gamma` and `normalise` are settings of several kinds, and mean another thing in each of them."""
    run = {
        "kind": "ddpo",
        "beta": 0.5,
        "nll_weight": 0.2,
        "gamma": 7.0,
        "normalise": False,
    }
    sources = {
        "same": {"min_match": 2},
        "dpo": {"kind": "sigmoid"},
        "simpo": {"kind": "simpo"},
        "sft": {"kind": "sft"},
        "rloo": {"kind": "rloo"},
        "grpo": {"kind": "grpo"},
    }
    config = config_of(run, sources)
    assert config.source_losses == {
        "same": loss_of_kind(**run, min_match=2),
        "dpo": loss_of_kind("sigmoid", beta=0.5, nll_weight=0.2),
        "simpo": loss_of_kind("simpo", nll_weight=0.2),
        "sft": loss_of_kind("sft", nll_weight=0.2),
        "rloo": loss_of_kind("rloo", beta=0.5, nll_weight=0.2),
        "grpo": loss_of_kind("grpo", beta=0.5, nll_weight=0.2),
    }


def test_label_smoothing_is_taken_over_where_there_is_any() -> None:
    sources = {"a": {"kind": "mpo"}, "b": {"kind": "ipo"}}
    config = config_of({"label_smoothing": 0.1}, sources)
    assert config.loss_of("a") == loss_of_kind("mpo", label_smoothing=0.1)
    assert config.loss_of("b") == loss_of_kind("ipo")


def config_of(
    loss: dict[str, Any],
    source_losses: dict[str, dict[str, Any]],
) -> LearnerConfig:
    tree = {"loss": loss, "source_losses": source_losses}
    return LearnerConfig.model_validate(tree)


def test_a_weight_is_of_a_source() -> None:
    expected = r"set learner\.source_losses\.NAME\.weight"
    with pytest.raises(ValidationError, match=expected):
        LearnerConfig.model_validate({"loss": {"weight": 2.0}})


def test_judged_groups_become_what_the_loss_reads() -> None:
    def judged_source(learner: dict[str, Any]) -> str:
        tree = {"learner": learner, "mixture": {"online_fraction": 1}}
        config = RunConfig.model_validate(tree)
        assert config.judged_loss == config.learner.loss_of(config.judged_source)
        return config.judged_source

    assert judged_source({"loss": {"kind": "sigmoid"}}) == ONLINE
    for source in (RLOO, GRPO):
        assert judged_source({"loss": {"kind": source}}) == source
        assert judged_source({"source_losses": {source: {"kind": source}}}) == source
    # A loss on another one's advantages is none of judged groups.
    assert judged_source({"source_losses": {RLOO: {"kind": GRPO}}}) == ONLINE


def test_ratios_want_tokens_of_the_policy_itself() -> None:
    """The engine's log-probs and the learner's are of temperature 1."""

    def config(kind: str, **rollout: float) -> RunConfig:
        learner = {"loss": {"kind": kind}}
        tree = {"learner": learner, "mixture": {"online_fraction": 1}}
        return RunConfig.model_validate({**tree, "rollout": rollout})

    for rollout in ({"temperature": 0.7}, {"top_p": 0.9}):
        with pytest.raises(ValidationError, match=r"must be 1 for the grpo loss"):
            config("grpo", **rollout)
        config("rloo", **rollout)
    config("grpo", temperature=1.0)


def comparisons_with_a_kind(path: Path) -> Iterator[str]:
    """Comparisons of something that is called a kind or a loss with the name of one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Compare):
            continue
        constants: set[object] = set()
        names: set[str] = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Constant):
                constants.add(part.value)
            elif isinstance(part, ast.Attribute):
                names.add(part.attr)
            elif isinstance(part, ast.Name):
                names.add(part.id)
        is_about_losses = any("kind" in name or "loss" in name for name in names)
        if is_about_losses and constants & set(loss_sections()):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def test_nobody_else_asks_for_the_kind_of_a_loss() -> None:
    allowed = {ROOT / "common/config/losses.py", *(ROOT / "learner/losses").iterdir()}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path not in allowed:
                assert not list(comparisons_with_a_kind(path))


@pytest.mark.parametrize(
    "line", ['loss.kind == "rloo"', '"mpo" in kinds', 'a.kind in ("povid", "mdpo")']
)
def test_such_a_comparison_is_seen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: line)
    assert list(comparisons_with_a_kind(ROOT / "learner/learner.py"))
