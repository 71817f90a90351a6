"""The reference of all keys as Markdown, read off the pydantic tree: `python -m docs.site.reference` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.flags import (
    BDHS_FLAGS,
    EVALUATE_FLAGS,
    EXPORT_FLAGS,
    IMPORT_FLAGS,
    INSPECT_FLAGS,
    JUDGE_FLAGS,
    POVID_FLAGS,
)
from common.command_line.keys import (
    ELEMENT,
    ENTRY,
    Key,
    SectionClass,
    item_type,
    keys_of,
    kind_names,
    sections_of,
)
from common.config import RunConfig
from common.config.flags import Flag
from common.config.jobs import (
    BdhsJobConfig,
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    JudgeJobConfig,
    PovidJobConfig,
)

HEAD = """# Configuration

Every key of every command. `--help` of a command lists the same. This page is generated from the pydantic tree in
`common/config/`.

- A preset is a TOML file of these keys, or the `config.json` that a run leaves. `--section.key value` sets one on top.
- A section with a `kind` is a choice: `--learner.loss.kind ipo`. Another kind drops the keys of the one before.
- `N` is a place in a list, from 0 on. `NAME` is a name, such as a source of pairs.
- In Python, `cluster.library.settings({"learner.loss.kind": "ipo"})` takes the same keys.
- *Kinds* before a meaning: the key is there for these kinds alone.
"""
JOBS_HEAD = """## Other commands

They read keys of a run, and have some of their own. A short flag sets one key.
"""

JOBS: dict[str, tuple[type[RunConfig], tuple[Flag, ...]]] = {
    "cluster.generate bdhs": (BdhsJobConfig, BDHS_FLAGS),
    "cluster.generate povid": (PovidJobConfig, POVID_FLAGS),
    "cluster.evaluate": (EvaluateConfig, EVALUATE_FLAGS),
    "cluster.evaluate judge": (JudgeJobConfig, JUDGE_FLAGS),
    "cluster.import_data NAME": (ImportConfig, IMPORT_FLAGS),
    "cluster.import_data export": (ExportConfig, EXPORT_FLAGS),
    "cluster.import_data inspect": (InspectConfig, INSPECT_FLAGS),
}
"""Command -> its tree and its short flags."""


def reference() -> str:
    """The whole page."""
    lines = [HEAD]
    lines += sections(RunConfig, list(RunConfig.model_fields), "##")
    lines.append(JOBS_HEAD)
    for command, (schema, flags) in JOBS.items():
        lines += command_lines(command, schema, flags)
    return "\n".join(lines) + "\n"


# The tree.


def sections(schema: SectionClass, names: Sequence[str], heading: str) -> Iterator[str]:
    """Headings, docstrings and tables of these top sections, inner sections after outer ones."""
    keys = list(keys_of(schema))
    twins = twin_sections(schema)
    for path, members in section_classes(schema):
        top = path.partition(".")[0]
        if top not in names or within(path, twins):
            continue
        yield f"{heading}{'#' * (path != top)} `{path}`\n"
        if path in twins:
            yield f"The same keys as `{twins[path]}`.\n"
            continue
        yield from docstrings(members)
        yield from table([key for key in keys if key.section == path])


def twin_sections(schema: SectionClass) -> dict[str, str]:
    """Section -> an earlier one that has all of its classes, and so all of its keys."""
    seen: dict[str, list[SectionClass]] = {}
    twins: dict[str, str] = {}
    for path, members in section_classes(schema):
        if within(path, twins):
            continue
        for earlier, others in seen.items():
            if len(members) > 1 and set(members) <= set(others):
                twins[path] = earlier
                break
        else:
            seen[path] = members
    return twins


def within(path: str, twins: dict[str, str]) -> bool:
    """Whether a section lies inside of one that is told as its twin."""
    return any(path.startswith(f"{twin}.") for twin in twins)


def section_classes(
    schema: SectionClass, prefix: str = ""
) -> Iterator[tuple[str, list[SectionClass]]]:
    """(dotted path, classes) of every section below a class, outer ones first; several classes where `kind` chooses."""
    for name, field in schema.model_fields.items():
        path = f"{prefix}{name}"
        members = sections_of(field.annotation)
        entries = sections_of(item_type(field.annotation))
        if members:
            yield from classes_below(path, members)
        elif entries:
            default = field.get_default(call_default_factory=True)
            place = ENTRY if default == {} else ELEMENT
            yield from classes_below(f"{path}.{place}", entries)


def classes_below(
    path: str, members: list[SectionClass]
) -> Iterator[tuple[str, list[SectionClass]]]:
    """A section and those inside of any of its kinds."""
    yield path, members
    inner: dict[str, list[SectionClass]] = {}
    for member in members:
        inner.update(section_classes(member, f"{path}."))
    yield from inner.items()


# One section.


def docstrings(members: Sequence[SectionClass]) -> Iterator[str]:
    """The first paragraph of each class, in a list where there are several kinds."""
    for member in members:
        text = " ".join((member.__doc__ or "").partition("\n\n")[0].split())
        kinds = ", ".join(f"`{kind}`" for kind in kind_names(member))
        yield f"- {kinds}: {text}" if len(members) > 1 else text
    yield ""


def table(keys: Sequence[Key]) -> Iterator[str]:
    """One row a key; a key that several kinds have alike comes once."""
    if not keys:
        return
    kinds_of_row: dict[tuple[str, str, str, str], list[str]] = {}
    for key in keys:
        row = (key.name, key.type, key.default, key.meaning)
        kinds = kinds_of_row.setdefault(row, [])
        kinds += [kind for path, kind in key.kinds if path == key.section]
    all_kinds = set().union(*kinds_of_row.values())
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    marked: set[str] = set()
    for (name, type_, default, meaning), kinds in kinds_of_row.items():
        is_of_some = 0 < len(kinds) < len(all_kinds)
        condition = f"*{', '.join(kinds)}*: " if is_of_some else ""
        # An id may come once on a page.
        mark = "" if name in marked else f'<a id="{name}"></a>'
        marked.add(name)
        value = default.removeprefix("default ")
        cells = (
            f"{mark}`{name}`",
            cell(type_),
            cell(value),
            condition + cell(meaning),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def cell(text: str) -> str:
    """Text that a table's cell shows as it is."""
    for sign in "\\|*<_":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


# Other commands.


def command_lines(
    command: str, schema: type[RunConfig], flags: Sequence[Flag]
) -> Iterator[str]:
    """A job: its short flags, the keys of a run that it reads, and its own sections."""
    yield f"### `{command}`\n"
    yield "| flag | sets | meaning |\n|---|---|---|"
    for flag in flags:
        name = flag.name if flag.name.startswith("-") else flag.metavar
        yield f"| `{name}` | `{flag.key}` | {cell(flag.help)} |"
    yield ""
    job_sections: list[str] = []
    read: dict[str, None] = {}
    for name in schema.keys_read:
        if name in schema.model_fields and name not in RunConfig.model_fields:
            job_sections.append(name)
        else:
            read[f"`{name}`"] = None
    if read:
        yield f"Of a run's keys it reads {', '.join(read)}.\n"
    yield from sections(schema, job_sections, "####")


if __name__ == "__main__":
    print(reference())
