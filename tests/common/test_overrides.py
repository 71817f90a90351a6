"""Presets and overrides: every preset loads, and every mistake gives one line that names the way out."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import BeforeValidator, Tag

from common.command_line.keys import keys_of
from common.config import (
    Full,
    HeldOut,
    Lora,
    PolicyJudge,
    PromptFile,
    PromptsSuite,
    Run,
    RunConfig,
    ShapesPrompts,
)
from common.config.flags import Flag
from common.config.jobs import (
    BdhsJobConfig,
    ImportSettings,
    InspectSettings,
    PovidJobConfig,
)
from common.config.overrides import describe_keys, load, load_config, split_overrides
from common.config.section import Section, by_kind
from common.errors import UserError

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


def switched(*words: str) -> RunConfig:
    """The online preset, whose prompts are of the kind shapes with a count, with overrides."""
    return load_config(Path("cluster/configs/shapes_online.toml"), words)


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


# Lists of sections.


class Pope(Section):
    kind: Literal["pope"] = "pope"
    scenes: int = 100


class Amber(Section):
    kind: Literal["amber"] = "amber"
    folder: str


def kind_of_a_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


SuiteSection = Annotated[
    Annotated[Pope, Tag("pope")] | Annotated[Amber, Tag("amber")],
    by_kind("pope"),
    BeforeValidator(kind_of_a_name),
]


class Looks(Section):
    suites: tuple[SuiteSection, ...] = (Pope(), Amber(folder="x"))


class WithSuites(RunConfig):
    """A run's tree with a list of sections of several kinds."""

    looks: Looks = Looks()
    job_defaults: ClassVar[dict[str, Any]] = {"mixture": {"online_fraction": 1}}


@pytest.mark.parametrize(
    ("words", "suites"),
    [
        ([], (Pope(), Amber(folder="x"))),
        (["--looks.suites", '["pope"]'], (Pope(),)),
        (["--looks.suites", "pope"], (Pope(),)),
        (["--looks.suites=[pope,pope]"], (Pope(), Pope())),
        (["--looks.suites=[]"], ()),
        (["--looks.suites.0.scenes", "30"], (Pope(scenes=30), Amber(folder="x"))),
        (["--looks.suites.1.folder", "y"], (Pope(), Amber(folder="y"))),
        (["--looks.suites.1", "pope"], (Pope(), Pope())),
        (["--looks.suites.1.kind", "pope"], (Pope(), Pope())),
        (["--looks.suites.2.scenes=5"], (Pope(), Amber(folder="x"), Pope(scenes=5))),
        (["--looks.suites=pope", "--looks.suites.0.scenes=5"], (Pope(scenes=5),)),
    ],
)
def test_a_list_is_set_whole_or_by_place(
    words: list[str], suites: tuple[Section, ...]
) -> None:
    config = load(WithSuites, None, words)
    assert config.looks.suites == suites


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--looks.suites.5.scenes=1"],
            "--looks.suites.5.scenes: expected a number from 0 to 2",
        ),
        (
            ["--looks.suites.x.scenes=1"],
            "--looks.suites.x.scenes: expected a number from 0 to 2",
        ),
        (
            ["--looks.suites.0.scene=1"],
            "unknown config key looks.suites.0.scene; did you mean",
        ),
        (
            ["--looks.suites.1.scenes=1"],
            "unknown config key looks.suites.1.scenes: looks.suites.N.kind is amber; "
            "kinds with this key: pope",
        ),
        (
            ["--looks.suites.0.scenes=many"],
            "looks.suites.0.scenes: Input should be a valid integer",
        ),
        (
            ["--looks.suites.0.kind=mmhal"],
            "looks.suites.0.kind: expected pope or amber, got 'mmhal'",
        ),
        (
            ["--looks.suites=mmhal"],
            "looks.suites.0.kind: expected pope or amber, got 'mmhal'",
        ),
        (
            ["--looks.suites=[3]"],
            "looks.suites.0: expected a section of kind pope or amber, got 3",
        ),
    ],
)
def test_errors_in_a_list_name_the_place(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(WithSuites, None, words)
    assert str(error.value).startswith(message)


def test_help_of_a_list_of_sections() -> None:
    lines = describe_keys(WithSuites).splitlines()
    assert "  --looks.suites list of pope|amber  (default pope,amber)" in lines
    assert "  --looks.suites.N.kind pope|amber  (required)" in lines
    assert "  --looks.suites.N.scenes int  (kind pope; default 100)" in lines
    assert "  --looks.suites.N.folder str  (kind amber; required)" in lines


def test_help_says_required_and_names_kinds_once() -> None:
    text = describe_keys()
    assert "Undefined" not in text
    assert "  --data.prompts.path str  (kind file; required)\n" in text
    assert text.count("--model.tuning.kind ") == 1


# Short flags.


RHO = Flag("--rho", "rollout.bdhs.rho", "")
ONLINE = "--mixture.online_fraction=1"


def test_a_flag_sets_its_key_and_errors_name_it() -> None:
    config = load(RunConfig, None, [ONLINE], {RHO: "0.2"}, [RHO])
    assert config.rollout.bdhs.rho == 0.2
    with pytest.raises(UserError, match=r"^--rho \(rollout\.bdhs\.rho\): .* got 2$"):
        load(RunConfig, None, [ONLINE], {RHO: "2"}, [RHO])


def test_a_flag_and_an_override_may_agree_but_not_differ() -> None:
    words = [ONLINE, "--rollout.bdhs.rho", "0.20"]
    assert load(RunConfig, None, words, {RHO: "0.2"}).rollout.bdhs.rho == 0.2
    with pytest.raises(UserError, match=r"^--rho and --rollout\.bdhs\.rho: "):
        load(RunConfig, None, words, {RHO: "0.3"})


def test_a_flag_whose_key_depends_on_the_kind() -> None:
    count = Flag("--count", "data.prompts.count", "", otherwise="data.prompts.rows")
    shapes = load(RunConfig, None, [ONLINE], {count: "5"}).data.prompts
    assert isinstance(shapes, ShapesPrompts)
    assert shapes.count == 5
    words = [ONLINE, "--data.prompts.kind=file", "--data.prompts.path=x"]
    file = load(RunConfig, None, words, {count: "5"}).data.prompts
    assert file == PromptFile(path="x", rows=5)


def test_a_secret_is_not_repeated() -> None:
    words = [
        "--generate.out=x",
        "--povid.endpoint.base_url=http://me:secret@x/v1",
        "--povid.endpoint.model=m",
    ]
    for more in ([], ["--povid.endpoint=http://me:secret@x/v1"]):
        with pytest.raises(UserError, match=r"povid\.endpoint") as error:
            load(PovidJobConfig, None, [*words, *more])
        assert "secret" not in str(error.value)


# Numbers.


def numbers_of(schema: type[RunConfig]) -> list[tuple[str, str, dict[str, str]]]:
    """Every key that takes a number: its name as in an override, its type, and the kinds it needs."""
    keys = []
    for key in keys_of(schema):
        takes_number = "int" in key.type.split("|") or "float" in key.type.split("|")
        if takes_number or key.type == "list of float":
            name = key.name.replace(".NAME.", ".x.").replace(".N.", ".0.")
            kinds = {}
            for path, kind in key.kinds:
                kinds[path.replace(".NAME", ".x").replace(".N", ".0")] = kind
            keys.append((name, key.type, kinds))
    return keys


class AllJobs(BdhsJobConfig):
    """The trees of all commands in one."""

    keys_read: ClassVar[tuple[str, ...]] = ()
    import_data: ImportSettings
    inspect: InspectSettings
    job_defaults: ClassVar[dict[str, Any]] = {
        "generate": {"out": "x"},
        "import_data": {"name": "x", "path": "x", "out": "x"},
        "inspect": {"directory": "x"},
    }


NUMBERS = numbers_of(AllJobs)


REQUIRED = {
    "members": '=[{ judge = { kind = "rules" } }]',
    "member": ".kind=rules",
    "judge": ".kind=rules",
    "eye": ".kind=torch",
    "target": "=a:B",
    "base_url": "=http://h/v1",
    "size": "=5",
}
"""What to set where a section of a kind wants a value of its own; "=x" for all others."""


def load_number(name: str, kinds: dict[str, str], word: str) -> AllJobs:
    words = [f"--{path}.kind={kind}" for path, kind in kinds.items()]
    if name.startswith("evaluation.suites.") and not kinds:
        words.append('--evaluation.suites=["shapes"]')
    if name.startswith("povid.endpoint"):
        words += ["--povid.endpoint.base_url=http://h/v1", "--povid.endpoint.model=m"]
    words.append(f"--{name}={word}")
    for _ in range(5):
        try:
            return load(AllJobs, None, words)
        except UserError as error:
            key, missing, _ = str(error).partition(": expected a value, got nothing")
            if not missing:
                raise
            words.insert(0, f"--{key}{REQUIRED.get(key.rpartition('.')[2], '=x')}")
    raise AssertionError(words)


@pytest.mark.parametrize(("name", "type", "kinds"), NUMBERS, ids=str)
def test_no_number_is_endless(name: str, type: str, kinds: dict[str, str]) -> None:
    words = ["inf", "-inf", "nan", "1e300", "true"]
    if type == "list of float":
        words = [f"[{word}, 0.5]" for word in words]
    for word in [*words, str(10**30)]:
        with pytest.raises(UserError) as error:
            load_number(name, kinds, word)
        line = str(error.value)
        # A rule between two numbers, as of mdpo's crop, names the last part of the key.
        assert name.rpartition(".")[2] in line and "\n" not in line, (word, line)


@pytest.mark.parametrize(
    ("key", "word", "said"),
    [
        ("learner.optimizer.lr", "0", "greater than or equal to 0.000000000001"),
        ("learner.optimizer.lr", "1e-300", "greater than or equal to 0.000000000001"),
        ("learner.optimizer.lr", "2", "less than or equal to 1"),
        ("learner.optimizer.betas", "[0.9, 1.0]", "less than 1"),
        ("learner.optimizer.betas", "0.9,1.5", "less than 1"),
        ("learner.optimizer.betas", "[-0.1, 0.9]", "greater than or equal to 0"),
        ("learner.optimizer.weight_decay", "2", "less than or equal to 1"),
        ("loop.heartbeat_s", "-1", "greater than 0"),
        ("loop.stall_limit_s", "0", "greater than 0"),
        ("cluster.start_timeout_s", "-5", "greater than 0"),
        ("learner.num_cpus", "-1", "greater than or equal to 0"),
        ("reward.num_cpus", "-1", "greater than or equal to 0"),
        ("rollout.num_gpus", "-1", "greater than or equal to 0"),
        ("rollout.num_gpus", "1.5", "a share of one GPU or a whole number"),
        ("learner.num_gpus", "2.5", "a share of one GPU or a whole number"),
        ("rollout.engine.block_size", "0", "greater than or equal to 1"),
        ("rollout.temperature", "1000", "less than or equal to 100"),
        ("rollout.bdhs.similarity_threshold", "-2", "greater than or equal to -1"),
        ("run.seed", str(2**63), f"less than {2**63}"),
        ("learner.num_steps", str(2**31), "at most 2,147,483,647"),
    ],
)
def test_numbers_that_mean_nothing(key: str, word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        switched(f"--{key}={word}")
    assert str(error.value).startswith(key) and said in str(error.value)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("learner.optimizer.lr", "3e-5"),
        ("learner.optimizer.betas", "[0, 0.999]"),
        ("learner.loss.beta", "0.02"),
        ("rollout.engine.kv_cache_bytes", str(64 << 30)),
        ("rollout.num_gpus", "0.5"),
        ("reward.num_gpus", "2"),
        ("run.seed", "20261125190512"),
        ("run.seed", "-1"),
        ("rollout.bdhs.rho", "1"),
    ],
)
def test_numbers_that_people_use(key: str, word: str) -> None:
    switched(f"--{key}={word}")


# Paths.

PATHS = [
    "run.dir",
    "model.path",
    "data.offline.path",
    "evaluation.pairs",
    "learner.fast.reference_cache",
    "rollout.bdhs.similarity",
    "generate.out",
    "import_data.path",
    "import_data.out",
    "import_data.images",
    "inspect.directory",
    "inspect.out",
    "inspect.policy",
]


def value_at(config: AllJobs, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("key", PATHS)
def test_a_path_is_what_a_person_means(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(value_at(load(AllJobs, None, [f"--{key}=~/x"]), key)) == "/home/me/x"
    assert str(value_at(load(AllJobs, None, [f"--{key}=./~x"]), key)).endswith("~x")
    for word in ("", "  ", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UserError) as error:
            load(AllJobs, None, [f"--{key}={word}"])
        assert str(error.value).startswith(f"{key}: expected a "), word


def test_paths_inside_sections_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = switched(
        "--data.prompts.kind=file",
        "--data.prompts.path=~/prompts",
        '--data.offline.path=["~/a", "b"]',
        "--reward.judge.kind=policy",
        "--reward.judge.path=~/judge",
    )
    assert config.data.prompts == PromptFile(path="/home/me/prompts")
    assert config.data.offline is not None
    assert config.data.offline.paths == ("/home/me/a", "b")
    assert config.reward.judge == PolicyJudge(path="/home/me/judge")


def test_a_bare_value_stands_for_a_section(tmp_path: Path) -> None:
    words = [ONLINE, "--data.prompts", "x.jsonl", "--data.validation", "0.1"]
    data = load_config(None, [*words, "--data.test=200"]).data
    assert data.prompts == PromptFile(path="x.jsonl")
    assert data.validation == HeldOut(size=0.1)
    assert data.test == HeldOut(size=200)
    # Parts of it can be set, before it or after it.
    for more in (["--data.prompts.rows=5", *words], [*words, "--data.prompts.rows=5"]):
        assert load_config(None, more).data.prompts == PromptFile(
            path="x.jsonl", rows=5
        )
    preset = tmp_path / "p.toml"
    preset.write_text('[data]\nprompts = "y"\nvalidation = "z"\ntest = 7\n')
    data = load_config(preset, [ONLINE, "--data.prompts.rows=5"]).data
    assert data.prompts == PromptFile(path="y", rows=5)
    assert data.validation == PromptFile(path="z")
    assert data.test == HeldOut(size=7)
    # A run's own config.json says the same again.
    again = tmp_path / "config.json"
    again.write_text(load_config(preset, [ONLINE]).model_dump_json())
    assert load_config(again, []).data == load_config(preset, [ONLINE]).data


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--data.validation=0", "data.validation.size: expected a whole number of"),
        ("--data.validation=1.0", "or a share between 0 and 1, got 1.0"),
        ("--data.validation=-0.5", "or a share between 0 and 1, got -0.5"),
        ("--data.validation=true", "data.validation: expected a section of kind"),
        ("--data.prompts=7", "data.prompts: expected a section of kind shapes or file"),
        ("--data.test=0.5", "data.test = 0.5 needs data.prompts of a path"),
    ],
)
def test_bare_values_that_stand_for_nothing(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, [ONLINE, word])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_prompts_that_are_held_out_are_measured() -> None:
    words = [ONLINE, "--data.prompts=x", "--data.validation=0.1"]
    assert load_config(None, words).evaluation.suites == (PromptsSuite(),)
    none = [*words, "--evaluation.suites=[]"]
    assert load_config(None, none).evaluation.suites == ()
