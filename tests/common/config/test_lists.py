"""Lists of sections on a command line, and what the help says of them."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import BeforeValidator, Tag

from common.config import RunConfig
from common.config.overrides import describe_keys, load
from common.config.section import Section, by_kind
from common.errors import UserError


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
