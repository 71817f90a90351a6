"""A stranger's run: pictures, a model and a judge that our source knows nothing of, and what our scorecard says of it.

The world is `tests/worlds/stickers.py`, and the run that of docs/your_own_world.md, to the letter; docs/tutorial.md
makes the same world. Nothing edits the source or a config file. An independent script (transformers, no vLLM, nothing
of ours) measures the same policies.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.data.datasets import read_pairs
from tests.docs.pages import DOCS, block_with
from tests.real_runs import command, events, run_to_end, settings
from tests.worlds import sticker_chair, sticker_judge
from tests.worlds.sticker_model import sticker_model
from tests.worlds.stickers import ASK_CAPTION, write_world

PAGE = DOCS / "your_own_world.md"

# The first test also waits for the model to be trained, where no cache has it, and for the run.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module")
def world(folder: Path) -> Path:
    write_world(folder / "world")
    return folder / "world"


@pytest.fixture(scope="module")
def model() -> Path:
    return sticker_model()


def words_of_the_page(word: str, paths: dict[str, Path]) -> list[str]:
    """The one command of docs/your_own_world.md that holds a word, with the paths of this test."""
    text = block_with(PAGE, word).text.replace("\\\n", " ")
    python, m, *words = shlex.split(text)
    assert (python, m) == ("python", "-m")
    for name, path in paths.items():
        words = [given.replace(name, str(path)) for given in words]
    return command(*words)


def test_a_look_before_the_run(folder: Path, world: Path, model: Path) -> None:
    """The commands of the page that show what is read, and how the model is prompted."""
    paths = {"~/world": world, "/tmp/looked-at": folder / "looked-at"}
    looked = run_to_end(words_of_the_page("import_data prompts", paths), 100)
    assert "400" in looked
    seen = run_to_end(words_of_the_page("cluster.doctor", {"~/model": model}), 100)
    assert "a question" in seen


@pytest.fixture(scope="module")
def run_dir(folder: Path, world: Path, model: Path) -> Path:
    judge = folder / "my_judge.py"
    shutil.copy(sticker_judge.__file__, judge)
    paths = {
        "runs/mine": folder / "run",
        "~/world": world,
        "WORLD": world,
        "~/model": model,
        "~/my_judge.py": judge,
    }
    run_to_end(words_of_the_page("evaluation.suites", paths), 900)
    return folder / "run"


@pytest.fixture(scope="module")
def card(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "scorecard.json").read_text())


def kept_answers(run_dir: Path, policy: str, suite: str) -> list[str]:
    """What the run's own engines answered about the test pictures, in the order of their rows."""
    kept = json.loads((run_dir / "evaluation" / f"{policy}.json").read_text())
    (groups,) = kept["answers"]["suites"][suite]["tasks"].values()
    # CHAIR asks a draw of them in its own order.
    groups.sort(key=lambda group: int(group["id"].rpartition("/")[2]))
    return [group["completions"][0]["text"] for group in groups]


@pytest.mark.parametrize("policy", ["baseline", "final"])
def test_our_scorecard_says_what_an_independent_script_says(
    policy: str, card: dict[str, Any], run_dir: Path, world: Path, model: Path
) -> None:
    directory = model if policy == "baseline" else run_dir / "policy"
    words = [sys.executable, sticker_chair.__file__, str(directory), str(world)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    independent = json.loads(answer.stdout)
    for suite in ("chair", "prompts"):
        assert kept_answers(run_dir, policy, suite) == independent["answers"]
    metrics = card[policy]["suites"]["chair"]["metrics"]
    for key in ("chair_i", "chair_s", "recall"):
        assert metrics[key]["value"] == pytest.approx(independent[key], abs=1e-9)
    # The judge's own score of those answers, called here as any function.
    lines = (world / "test.jsonl").read_text().splitlines()
    scores = []
    for line, text in zip(lines, independent["answers"], strict=True):
        scores += sticker_judge.score(
            ASK_CAPTION, None, [text], json.loads(line)["objects"]
        )
    judged = card[policy]["suites"]["prompts"]["metrics"]["judge_score"]["value"]
    assert judged == pytest.approx(sum(scores) / len(scores), abs=1e-9)


def test_the_policy_makes_up_less(card: dict[str, Any]) -> None:
    start = card["baseline"]["suites"]["chair"]["metrics"]["chair_i"]["value"]
    final = card["final"]["suites"]["chair"]["metrics"]["chair_i"]
    assert start > 0.1
    assert final["value"] < start / 3
    assert final["interval"][1] < start
    prompts = card["final"]["suites"]["prompts"]["metrics"]
    assert prompts["win_rate"]["interval"][0] > 0.5
    assert card["final"]["suites"]["chair"]["metrics"]["recall"]["value"] > 0.9


def test_the_journal_and_the_page_are_about_the_strangers_pictures(
    run_dir: Path,
) -> None:
    outcomes = {event["outcome"] for event in events(run_dir, "group")}
    assert "pair" in outcomes
    page = (run_dir / "samples.html").read_text()
    assert ASK_CAPTION in page
    assert "I can see" in page
    assert "data:image/" in page


@pytest.mark.long
def test_bdhs_pairs_of_the_same_prompts(folder: Path, world: Path, model: Path) -> None:
    out = folder / "bdhs"
    values = {"model.path": model, "data.prompts": world / "train.jsonl"}
    words = command("cluster.generate", "bdhs", "--out", out, "--count", "16")
    run_to_end([*words, *settings(values)], 400)
    pairs = read_pairs(out)
    assert pairs
    for pair in pairs:
        assert pair.chosen.text.startswith("I can see")
        assert pair.chosen.text != pair.rejected.text
