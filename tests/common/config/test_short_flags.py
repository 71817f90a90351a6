"""Short flags, which stand for a key of the tree."""

import pytest

from common.config import PromptFile, RunConfig, ShapesPrompts
from common.config.flags import Flag
from common.config.jobs import PovidJobConfig
from common.config.overrides import load
from common.errors import UserError
from tests.common.config.trees import ONLINE

RHO = Flag("--rho", "rollout.bdhs.rho", "")


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
