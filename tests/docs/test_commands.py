"""Every `python -m …` command of the documents is one that the command line takes, with keys that exist.

`test_pages.py` runs those of the site that run on any machine.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import prompt_value, replay_value
from cluster import (
    doctor,
    evaluate,
    evaluate_judge,
    generate,
    import_data,
    report,
    train,
)
from common.config.overrides import load_config
from common.shapes import pretrain as shapes
from common.tabletop import pretrain as tabletop
from tests.docs.pages import ROOT, pages

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *pages(),
    ROOT / "docs" / "cluster" / "ray_job.yaml",
    ROOT / "docs" / "cluster" / "slurm.sbatch",
]
COMMAND = re.compile(
    r"(?:python|PYTHON) -m ((?:cluster|benchmarks|common|tests)[\w.]*)(.*)"
)
JOB = "docs/cluster/slurm.sbatch"
INLINE = re.compile(r"`(python -m [^`]+)`")
SHELL = re.compile(r"\s+(?:#|\||>|&&)")
"""Where a command ends: at a comment, or where another one begins."""
PLACEHOLDERS = {"NAME": "povid"}
WORLDS = ("shapes", "tabletop")


class Parsed(Exception):
    """The command line was read whole."""


def commands() -> Iterator[tuple[str, str, str]]:
    """(document, module, words) of every command in a block of code or within a text, continued lines joined."""
    for world in WORLDS:
        for line in lines_of_make(f"demo-{world}"):
            match = COMMAND.search(line)
            if match is not None:
                yield world, match[1], match[2].strip()
    for path in DOCUMENTS:
        for line in (*lines_of_code(path), *commands_in_text(path)):
            # The job script gives its words to the training.
            match = COMMAND.search(line.replace(JOB, "python -m cluster.train"))
            if match is not None:
                words = SHELL.split(match[2])[0]
                yield path.name, match[1], words.strip()


def lines_of_make(target: str) -> list[str]:
    """What make would run."""
    made = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return made.stdout.splitlines()


def lines_of_code(path: Path) -> list[str]:
    text = path.read_text()
    if path.suffix == ".yaml":
        # A folded scalar; the image holds the clone at /sightline.
        folded = re.sub(r"\n\s+--", " --", text)
        return folded.replace("/sightline/", "").splitlines()
    if path.suffix == ".sbatch":
        # The example in its head.
        return [line for line in text.splitlines() if line.startswith("#   ")]
    blocks = text.split("```")[1::2]
    lines: list[str] = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        # A quotation may go over several lines.
        if lines and SHELL.split(lines[-1])[0].count("'") % 2:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return lines


def commands_in_text(path: Path) -> list[str]:
    """Commands in backticks, outside of blocks."""
    if path.suffix != ".md":
        return []
    prose = "".join(path.read_text().split("```")[::2])
    return [" ".join(command.split()) for command in INLINE.findall(prose)]


COMMANDS = sorted(set(commands()))


def words_of(text: str) -> list[str]:
    """Words of a command as a shell parts them, up to `…`, with values in the place of names that stand for any."""
    words = []
    for word in shlex.split(text):
        if word == "…":
            break
        words.append(PLACEHOLDERS.get(word, word))
    return words


def reads_train(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> None:
        load_config(*arguments)
        raise Parsed

    monkeypatch.setattr(train, "load_config", read)
    with pytest.raises(Parsed):
        train.main(words)


def reads_doctor(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_findings", lambda *_: [])
    assert doctor.main(words) == 0


def reads_report(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_report", lambda *_: None)
    monkeypatch.setattr(report, "_show_page", lambda *_: None)
    assert report.main(words) == 0


def reads_evaluate(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "judge":
        evaluate_judge.config_of(words[1:])
    else:
        evaluate.config_of(words)


def reads_generate(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    generate.config_of(words)


def reads_import(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import_data.config_of(words)


def reads_shapes(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes.parse_args(list(words))


def reads_tabletop(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tabletop.parse_args(list(words))


def reads_prompt_value(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", *words])
    prompt_value.parse()


def reads_replay_value(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", *words])
    replay_value.parse()


READERS: dict[str, Callable[[Sequence[str], pytest.MonkeyPatch], None]] = {
    "benchmarks.prompt_value": reads_prompt_value,
    "benchmarks.replay_value": reads_replay_value,
    "cluster.train": reads_train,
    "cluster.doctor": reads_doctor,
    "cluster.report": reads_report,
    "cluster.evaluate": reads_evaluate,
    "cluster.generate": reads_generate,
    "cluster.import_data": reads_import,
    "common.shapes.pretrain": reads_shapes,
    "common.tabletop.pretrain": reads_tabletop,
}


@pytest.mark.parametrize(("document", "module", "text"), COMMANDS)
def test_a_command_of_a_document_is_read(
    document: str,
    module: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert importlib.util.find_spec(module) is not None, f"{document}: {module}"
    words = words_of(text)
    if module in READERS and words and "--help" not in words:
        monkeypatch.chdir(ROOT)
        READERS[module](words, monkeypatch)
    elif module not in READERS:
        source = Path(importlib.util.find_spec(module).origin).read_text()
        flags = [word for word in words if word.startswith("--")]
        assert [flag for flag in flags if f'"{flag}"' not in source] == []


def test_the_commands_are_there() -> None:
    """The search finds what it should: each command of README and of the page for clusters."""
    in_documents = {(document, module) for document, module, _ in COMMANDS}
    assert {
        ("cluster.md", name) for name in ("cluster.train", "cluster.doctor")
    } <= in_documents
    assert ("ray_job.yaml", "cluster.train") in in_documents
    # In a text, and in a folder of the site.
    assert ("limits.md", "benchmarks.gpu_first_hour") in in_documents
    assert ("loss.md", "cluster.train") in in_documents
    assert len(COMMANDS) > 90
    for world in WORLDS:
        assert (world, "cluster.generate") in in_documents
        assert (world, "cluster.train") in in_documents


def test_a_mistyped_key_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the check."""
    with pytest.raises(pytest.fail.Exception):
        reads_train(["--learner.num_stepz", "1"], monkeypatch)
