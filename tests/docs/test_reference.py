"""The reference page has every key of every command. They are found here by another way: pydantic's JSON schema."""

from __future__ import annotations

import re
from typing import Any

import pytest

from common.config import RunConfig
from docs.site.reference import JOBS, reference, section_classes, twin_sections

pytestmark = pytest.mark.filterwarnings(
    "ignore::pydantic.json_schema.PydanticJsonSchemaWarning"
)
"""A frozen table is no JSON value to pydantic."""

PAGE = reference()
ROWS = re.findall(r"^\| (?:<a id=\"\S+\"></a>)?`(\S+)` \| (.*)$", PAGE, re.M)
NAMES = {name for name, _ in ROWS}


def resolved(node: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that a node of a JSON schema may be, through references and unions."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return [root["$defs"][name]]
    objects: list[dict[str, Any]] = []
    for member in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        objects += resolved(member, root)
    return objects


def schema_keys(node: dict[str, Any], root: dict[str, Any], path: str) -> set[str]:
    """The dotted names of all values below an object of a JSON schema."""
    keys: set[str] = set()
    for name, child in node.get("properties", {}).items():
        place = f"{path}{name}"
        items = resolved(child.get("items", {}), root)
        entries = child.get("additionalProperties", {})
        named = resolved(entries, root) if isinstance(entries, dict) else []
        sections = resolved(child, root)
        for section in sections:
            keys |= schema_keys(section, root, f"{place}.")
        for section in items:
            keys |= {place} | schema_keys(section, root, f"{place}.N.")
        for section in named:
            keys |= schema_keys(section, root, f"{place}.NAME.")
        if not (sections or items or named):
            keys.add(place)
    return keys


def told(key: str, twins: dict[str, str]) -> bool:
    """Whether the page has a key, or the one of the section that it refers to."""
    if key in NAMES:
        return True
    for section, twin in twins.items():
        if key.startswith(f"{section}."):
            assert f"The same keys as `{twin}`" in PAGE
            return told(twin + key.removeprefix(section), twins)
    return False


@pytest.mark.parametrize("command", ["train", *JOBS])
def test_every_key_is_there(command: str) -> None:
    schema = RunConfig if command == "train" else JOBS[command][0]
    tree = schema.model_json_schema()
    keys = schema_keys(tree, tree, "")
    assert len(keys) > 300
    if command != "train":
        runs = {
            name for name in keys if name.partition(".")[0] in RunConfig.model_fields
        }
        read = {name for name in schema.keys_read if name not in RunConfig.model_fields}
        keys = {key for key in keys - runs if key.partition(".")[0] in read}
        assert keys
    twins = twin_sections(RunConfig)
    missing = [key for key in sorted(keys) if not told(key, twins)]
    assert missing == []


def test_a_row_says_type_default_and_meaning() -> None:
    row = dict(ROWS)["learner.num_steps"]
    assert row == "int | 100 |  |"
    staleness = dict(ROWS)["loop.max_staleness"]
    assert staleness.startswith("int | 1 | oldest weights")


def test_kinds_are_told_with_what_they_are() -> None:
    assert "- `ipo`: IPO (arXiv 2310.12036), length-normalised." in PAGE
    gammas = [rest for name, rest in ROWS if name == "learner.loss.gamma"]
    assert [rest.split("|")[1].strip() for rest in gammas] == ["1.0", "5.0"]
    assert gammas[0].split("|")[2].strip().startswith("*simpo*: ")


def test_an_id_comes_once() -> None:
    ids = re.findall(r'<a id="(\S+)">', PAGE)
    run_ids = [name for name in ids if name.partition(".")[0] in RunConfig.model_fields]
    assert len(run_ids) == len(set(run_ids)) > 250


def test_a_section_has_the_classes_of_its_kinds() -> None:
    classes = dict(section_classes(RunConfig))
    assert len(classes["learner.loss"]) == 12
    assert classes["learner.source_losses.NAME"] == classes["learner.loss"]
