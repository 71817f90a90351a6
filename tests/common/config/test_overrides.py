"""Presets and overrides: every preset loads, and every mistake gives one line that names the way out."""

from pathlib import Path

import pytest

from common.config import Full, Lora, PolicyJudge, PromptFile, Run
from common.config.overrides import describe_keys, load_config, split_overrides
from common.errors import UserError
from tests.common.config.trees import switched

PRESETS = sorted(Path("cluster/configs").glob("*.toml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_load(preset: Path) -> None:
    assert load_config(preset).learner.num_steps > 0


def test_expected_presets_exist() -> None:
    names = {path.stem for path in PRESETS}
    assert names >= {
        "shapes_offline",
        "shapes_online",
        "shapes_online_bdhs",
        "shapes_mixed",
        "llava16_7b_mixed",
        "llava16_7b_judged",
        "llava15_7b_povid",
        "qwen25_vl_7b_mixed",
        "qwen3_vl_8b_mixed",
        "qwen25_vl_72b_mixed",
    }


def test_the_cluster_preset_is_what_the_paper_trains() -> None:
    config = load_config(Path("cluster/configs/llava16_7b_mixed.toml"))
    assert isinstance(config.model.tuning, Lora)
    assert (config.model.tuning.r, config.model.tuning.alpha) == (128, 256)
    assert (config.mixture.kind, config.mixture.online_fraction) == ("bernoulli", 0.5)
    # It needs no judge; llava16_7b_judged has the paper's.
    assert (config.data.prompts.kind, config.online_sources) == (
        "file",
        ("online_bdhs",),
    )


def test_overrides_keep_their_types() -> None:
    config = load_config(
        None,
        [
            "--mixture.online_fraction=1",
            "--learner.optimizer.lr",
            "3e-5",
            "--run.dir",
            "runs/x",
            "--run.seed=7",
        ],
    )
    assert config.learner.optimizer.lr == 3e-5
    assert config.run.dir == Path("runs/x")
    assert config.run.seed == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--learner.num_step", "5"],
            "unknown config key learner.num_step; did you mean learner.num_steps?",
        ),
        (
            ["--learner.lr", "1"],
            "unknown config key learner.lr; did you mean learner.optimizer.lr?",
        ),
        (["--rollot.k", "3"], "did you mean rollout?"),
        (
            ["--mixture.online_fraction", "2"],
            "mixture.online_fraction: Input should be less than or equal to 1, got 2",
        ),
        (["--run.seed"], "--run.seed: expected a value after it"),
        (["--seed", "1"], "expected --section.key value, got '--seed'"),
        (["--model.tuning.r=8"], "unknown config key model.tuning.r"),
        (
            ["--model.tuning.kind=qlora"],
            "model.tuning.kind: expected full or lora, got 'qlora'",
        ),
        (
            ["--learner.source_losses.bdhs.betta=1"],
            "unknown config key learner.source_losses.bdhs.betta",
        ),
        (
            ["--learner.source_losses.bdhs.beta=0"],
            "learner.source_losses.bdhs.beta: Input should be greater than 0",
        ),
        (
            ["--learner.source_losses=ipo"],
            "learner.source_losses: Input should be a valid dictionary, got 'ipo'",
        ),
        ([], "needs offline pairs, got none; set data.offline.path"),
        (
            ["--mixture.kind=schedule", "--mixture.online_fraction=1"],
            "online_fraction = 0.0 needs offline pairs",
        ),
        (
            [
                "--mixture.online_fraction=1",
                "--learner.global_batch=3",
                "--learner.num_ranks=2",
            ],
            "multiple of",
        ),
        (
            [
                "--mixture.online_fraction=1",
                "--checkpoint.interval=5",
                "--loop.publish_interval=2",
            ],
            "multiple of",
        ),
        (
            [
                "--mixture.online_fraction=1",
                "--mixture.online_uses=2",
                "--loop.max_staleness=0",
            ],
            "mixture.online_uses = 2 needs loop.max_staleness of at least 1",
        ),
        (
            [
                "--mixture.offline_draw=by_value",
                "--data.offline.path=x",
                "--data.offline.by_prompt=true",
            ],
            "by_value draws single pairs, got data.offline.by_prompt; leave one out",
        ),
    ],
)
def test_mistakes_are_explained_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_broken_presets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a TOML file, got .*nothing\.toml"):
        load_config(tmp_path / "nothing.toml")
    for content in (b"[run\n", b"# \xff\n"):
        (tmp_path / "broken.toml").write_bytes(content)
        with pytest.raises(UserError, match="expected TOML"):
            load_config(tmp_path / "broken.toml")


def test_help_names_every_leaf() -> None:
    text = describe_keys()
    for key in (
        "run.seed",
        "learner.loss.beta",
        "learner.source_losses.NAME.weight",
        "rollout.bdhs.rho",
        "rollout.engine.block_size",
        "model.tuning.r",
    ):
        assert f"--{key} " in text


# Kinds.


def test_another_kind_drops_the_preset_keys_that_it_does_not_have() -> None:
    config = switched("--data.prompts.kind", "file", "--data.prompts.path", "x")
    assert config.data.prompts == PromptFile(path="x")
    # The order of overrides does not matter.
    config = switched("--data.prompts.path", "x", "--data.prompts.kind", "file")
    assert config.data.prompts == PromptFile(path="x")
    preset = Path("cluster/configs/llava16_7b_mixed.toml")
    config = load_config(preset, ["--model.tuning.kind=full"])
    assert config.model.tuning == Full()


def test_keys_that_both_kinds_have_stay(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text("[reward]\njudge = { kind = 'policy', path = 'x' }\n")
    words = ["--mixture.online_fraction=1", "--reward.judge.kind=policy"]
    judge = load_config(preset, words).reward.judge
    assert isinstance(judge, PolicyJudge)
    assert judge.path == "x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            [
                "--data.prompts.kind=file",
                "--data.prompts.path=x",
                "--data.prompts.count=5",
            ],
            "unknown config key data.prompts.count: data.prompts.kind is file; "
            "kinds with this key: shapes",
            id="an override's own key of another kind",
        ),
        pytest.param(
            ["--data.prompts.kind=file"],
            "data.prompts.path: expected a value, got nothing",
            id="a required key",
        ),
        pytest.param(
            ["--data.prompts.kind=file", "--data.prompts.pth=x"],
            "unknown config key data.prompts.pth; did you mean data.prompts.path?",
            id="a mistyped key",
        ),
    ],
)
def test_mistakes_with_kinds_name_the_way_out(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        switched(*words)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.tuning", "nonsense"],
            "model.tuning: expected a section of kind full or lora, got 'nonsense'; "
            "set model.tuning.kind",
        ),
        (
            ["--model.tuning.kind", "3"],
            "model.tuning.kind: expected full or lora, got 3",
        ),
        (
            ["--reward.judge", "3"],
            "reward.judge: expected a section of kind rules or ",
        ),
        (["--learner.optimizer", "3"], "learner.optimizer: expected a section, got 3"),
        (["--run.dir.x", "3"], "--run.dir.x: expected a section before the last name"),
    ],
)
def test_a_value_where_a_section_belongs(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        switched(*words)
    assert str(error.value).startswith(message)


# Words.


def test_overrides_are_parted_from_the_words_of_argparse() -> None:
    words = ["--run.dir", "runs/x", "p.toml", "--a.b=-1", "--resume", "--run.seed"]
    words += ["-7", "--out", "data/x.y"]
    others, overrides = split_overrides(words)
    assert others == ["p.toml", "--resume", "--out", "data/x.y"]
    assert overrides == ["--run.dir", "runs/x", "--a.b=-1", "--run.seed", "-7"]


def test_an_override_does_not_take_another_as_its_value() -> None:
    others, overrides = split_overrides(["--run.seed", "--resume"])
    assert (others, overrides) == (["--resume"], ["--run.seed"])
    with pytest.raises(UserError, match=r"--run\.seed: expected a value after it"):
        load_config(None, ["--run.seed", "--run.dir=x"])


def test_values() -> None:
    words = ["--run.seed", "-7", "--run.dir=2026-01-01", "--model.path", "7"]
    config = switched(
        *words, "--rollout.bdhs.stop=.,!", "--learner.optimizer.betas.0=0"
    )
    assert config.run == Run(seed=-7, dir=Path("2026-01-01"))
    assert config.model.path == "7"
    assert config.rollout.bdhs.stop == (".", "!")
    assert config.learner.optimizer.betas == (0, 0.999)
