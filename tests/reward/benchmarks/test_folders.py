"""All benchmarks alike: prompts, splits, the files for official evaluators, and folders that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from common.config import SuiteConfig
from common.data.images import ImageStore
from common.errors import UserError
from common.evaluation import Comparison
from common.records import Verdict
from reward.benchmarks.base import Benchmark
from reward.benchmarks.factory import make_benchmark
from tests.reward.benchmarks import published
from tests.reward.benchmarks.published import answers_of, reasons_of

SECTION: TypeAdapter[Any] = TypeAdapter(SuiteConfig)


@dataclass(frozen=True)
class Case:
    """A benchmark in miniature.

    Attributes:
        make: writes its folder.
        prompt: the first prompt's text.
        answers: to its prompts, in order.
        files: name -> what the official evaluator reads, parsed; of lines a list.
    """

    make: Callable[[Path], Path]
    prompt: str
    answers: list[str]
    files: dict[str, Any]


def llava_line(number: Any, item: str, prompt: str, text: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "prompt": prompt,
        "text": text,
        "answer_id": f"start/{item}",
        "model_id": "start",
        "metadata": {},
    }


ONE_WORD = "Answer the question using a single word or phrase."

POPE_LINE = {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "yes"}  # fmt: skip

CASES = {
    "pope": Case(
        published.pope_folder,
        "Is there a dog in the image?",
        ["Yes", "No", "Yes.", "No", "No"],
        {
            "coco_pope_random_answers.jsonl": [
                {"question": "Is there a dog in the image?", "answer": "Yes."},
                {"question": "Is there a cup in the image?", "answer": "No"},
                {"question": "Is there a cat in the image?", "answer": "No"},
            ],
            "coco_pope_popular.json": [
                POPE_LINE,
                {**POPE_LINE, "question_id": 2, "image": "b.png", "text": "Is there a tree in the image?"},
            ],
        },
    ),
    "chair": Case(
        published.coco_folder,
        "Please describe this image in detail.",
        ["A dog.", "A cat.", "A cup."],
        {},
    ),
    "amber": Case(
        published.amber_folder,
        "Describe this image.",
        ["A dog.", "A sky.", "No, it is not.", "yes", "Yes.", "Maybe", "no"],
        {
            "amber_responses.json": [
                {"id": 1, "response": "A dog."},
                {"id": 2, "response": "A sky."},
                {"id": 1005, "response": "No"},
                {"id": 1006, "response": "Yes"},
                {"id": 1007, "response": "Yes"},
                {"id": 1008, "response": "Yes"},
                {"id": 1009, "response": "No"},
            ]
        },
    ),
    "object_halbench": Case(
        published.object_hal_folder,
        "What is here?",
        ["A dog.", "A cat."],
        {
            "obj_halbench_answer.jsonl": [
                {"question_id": 0, "image_id": 1, "prompt": "What is here?", "text": "A dog.", "model_id": "start"},
                {"question_id": 1, "image_id": 2, "prompt": "What is here?", "text": "A cat.", "model_id": "start"},
            ]
        },
    ),
    "mmhal": Case(published.mmhal_folder, "What colour is 1?", ["Red.", "Blue."], {}),
    "llava_bench": Case(
        published.llava_folder,
        "What is 0?",
        ["Nothing.", "One."],
        {
            "answers.jsonl": [
                llava_line(0, "0", "What is 0?", "Nothing."),
                llava_line(1, "1", "What is 1?", "One."),
            ]
        },
    ),
    "hallusionbench": Case(
        published.hallusion_folder,
        "Is 0 right?",
        ["Yes", "No", "Yes", "No", "No", "é"],
        {},
    ),
    "mmvp": Case(
        published.mmvp_folder,
        "Is the door open? (a) Open (b) Closed",
        ["(a)", "(b)", "(a)", "(b)"],
        {},
    ),
    "textvqa": Case(
        published.textvqa_folder,
        f"What is the brand?\n{ONE_WORD}",
        ["dakota", "3"],
        {
            "answers.jsonl": [
                llava_line("0054c91397f2fe05", "34602", f"What is the brand?\n{ONE_WORD}", "dakota"),
                llava_line("005635e119b9f32f", "34603", f"How many?\n{ONE_WORD}", "3"),
            ],
            "textvqa_submission.json": [
                {"question_id": 34602, "answer": "dakota"},
                {"question_id": 34603, "answer": "3"},
            ],
        },
    ),
    "gqa": Case(
        published.gqa_folder,
        f"Is it blue?\n{ONE_WORD}",
        ["No.", "Cup"],
        {
            "testdev_balanced_predictions.json": [
                {"questionId": "201307251", "prediction": "no"},
                {"questionId": "201307252", "prediction": "cup"},
            ]
        },
    ),
}  # fmt: skip


WITH_PICTURES = [kind for kind in CASES if kind != "object_halbench"]
"""The other one's file holds the pictures."""


def suite_of(kind: str, folder: Path, **settings: Any) -> Benchmark:
    """The suite of a config section, as a run makes it."""
    section = {"kind": kind, "path": str(folder), **settings}
    if kind == "chair":
        section.setdefault("synonyms", str(folder / "synonyms.txt"))
    return make_benchmark(SECTION.validate_python(section))


def parsed(name: str, content: str) -> Any:
    """A file as its evaluator reads it: lines or one value."""
    if name.endswith(".jsonl") or "pope_" in name:
        return [json.loads(line) for line in content.splitlines()]
    return json.loads(content)


@pytest.mark.parametrize("kind", CASES)
def test_prompts_and_files(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    suite = suite_of(kind, case.make(tmp_path / "published"))
    store = ImageStore(tmp_path / "store")
    tasks = suite.prompts("test", store, [])
    prompts = [prompt for task in tasks.values() for prompt in task]
    assert set(tasks) == set(suite.tasks)
    assert prompts[0].messages[0].parts[-1].text == case.prompt
    assert len(prompts[0].images) == 1
    assert len({prompt.id for prompt in prompts}) == len(prompts) == len(case.answers)
    answers = answers_of(suite, store, case.answers)
    files = suite.answer_files(answers, "start")
    for name, expected in case.files.items():
        rows = parsed(name, files[name])
        assert rows == expected
        # The order of the keys too.
        assert json.dumps(rows) == json.dumps(expected)


@pytest.mark.parametrize("kind", CASES)
def test_another_instance_measures_the_same(kind: str, tmp_path: Path) -> None:
    """As after a resume: the answers are read again, the prompts are not made again."""
    case = CASES[kind]
    folder = case.make(tmp_path / "published")
    suite = suite_of(kind, folder)
    answers = answers_of(suite, ImageStore(tmp_path / "store"), case.answers)
    again = suite_of(kind, folder)
    assert again.measure(answers, None, 20).metrics == suite.measure(answers, None, 20).metrics  # fmt: skip
    assert again.answer_files(answers, "x") == suite.answer_files(answers, "x")


def test_entries_keep_their_order_and_all_they_hold(tmp_path: Path) -> None:
    folder = published.mmhal_folder(tmp_path / "mmhal")
    suite = suite_of("mmhal", folder)
    answers = answers_of(suite, ImageStore(tmp_path / "store"), {"2": "Blue é."})
    (content,) = suite.answer_files(answers, "start").values()
    template = json.loads((folder / "response_template.json").read_text())
    template[1]["model_answer"] = "Blue é."
    assert json.loads(content) == template
    assert "é" in content


def test_hallusionbench_rows_get_a_prediction(tmp_path: Path) -> None:
    suite = suite_of("hallusionbench", published.hallusion_folder(tmp_path / "x"))
    texts = CASES["hallusionbench"].answers
    answers = answers_of(suite, ImageStore(tmp_path / "store"), texts)
    files = suite.answer_files(answers, "start")
    rows = json.loads(files["HallusionBench_result.json"])
    expected = []
    for row, text in zip(published.hallusion_rows(), texts, strict=True):
        expected.append({**row, "model_prediction": text})
    assert rows == expected


def test_mmvp_and_chair_files(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    mmvp = suite_of("mmvp", published.mmvp_folder(tmp_path / "mmvp"))
    files = mmvp.answer_files(answers_of(mmvp, store, {"1": "(a)"}), "start")
    lines = parsed("answer.jsonl", files["answer.jsonl"])
    assert [line["response"] for line in lines] == ["(a)", "", "", ""]
    assert list(lines[0]) == ["question_id", "prompt", "answer", "response", "answer_id", "model_id"]  # fmt: skip
    assert lines[1]["answer"] == "(b)"
    chair = suite_of("chair", published.coco_folder(tmp_path / "coco"))
    files = chair.answer_files(answers_of(chair, store, {"2": "A dog."}), "start")
    captions = json.loads(files["chair_captions.json"])
    assert captions == [{"image_id": 2, "caption": "A dog."}]


def test_pope_files_fit_each_other_when_an_answer_is_lost(tmp_path: Path) -> None:
    suite = suite_of("pope", published.pope_folder(tmp_path / "pope"))
    texts = {"random/1": "Yes", "random/3": "No"}
    answers = answers_of(suite, ImageStore(tmp_path / "store"), texts)
    files = suite.answer_files(answers, "start")
    assert set(files) == {"coco_pope_random_answers.jsonl", "coco_pope_random.json"}
    asked = [json.loads(line) for line in files["coco_pope_random.json"].splitlines()]
    assert [row["question_id"] for row in asked] == [1, 3]
    assert len(files["coco_pope_random_answers.jsonl"].splitlines()) == 2


@pytest.mark.parametrize("kind", WITH_PICTURES)
def test_a_folder_without_its_pictures_is_one_line(kind: str, tmp_path: Path) -> None:
    folder = CASES[kind].make(tmp_path / "published")
    empty = tmp_path / "empty"
    empty.mkdir()
    suite = suite_of(kind, folder, images=str(empty))
    store = ImageStore(tmp_path / "store")
    if kind == "hallusionbench":
        # Its question without a figure is left.
        (prompts,) = suite.prompts("test", store, []).values()
        assert len(prompts) == 1
        return
    with pytest.raises(UserError) as error:
        suite.prompts("test", store, [])
    message = str(error.value)
    assert "\n" not in message
    assert f"evaluation.suites {kind}: expected pictures below {empty}" in message
    assert "image_missing" in message


@pytest.mark.parametrize("kind", WITH_PICTURES)
def test_a_missing_picture_is_counted(kind: str, tmp_path: Path) -> None:
    folder = CASES[kind].make(tmp_path / "published")
    pictures = sorted((*folder.rglob("*.png"), *folder.rglob("*.jpg")))
    pictures[0].unlink()
    if kind == "llava_bench":
        pictures[0].write_bytes(b"no picture")
        with pytest.raises(UserError, match="image_corrupt"):
            suite_of(kind, folder).prompts("test", ImageStore(tmp_path / "store"), [])
        return
    reasons = reasons_of(suite_of(kind, folder), ImageStore(tmp_path / "store"))
    assert reasons["image_missing"] >= 1


@pytest.mark.parametrize("kind", CASES)
def test_an_empty_folder_is_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text("dog\n")
    suite = suite_of(kind, tmp_path)
    with pytest.raises(UserError) as error:
        suite.prompts("test", ImageStore(tmp_path / "store"), [])
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"evaluation.suites {kind}: expected ")
    assert "got no such file" in message


@pytest.mark.parametrize("kind", CASES)
def test_no_folder_is_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text("dog\n")
    missing = tmp_path / "missing"
    settings = {"synonyms": str(tmp_path / "synonyms.txt")} if kind == "chair" else {}
    with pytest.raises(
        UserError, match=r"path: expected a folder, got .*check the path"
    ):
        suite_of(kind, missing, **settings)


UNKNOWN_COLUMNS = {
    "pope": "coco_pope_random.json",
    "object_halbench": "obj_halbench_300_with_image.jsonl",
    "mmhal": "response_template.json",
    "llava_bench": "questions.jsonl",
    "hallusionbench": "HallusionBench.json",
    "gqa": "testdev_balanced_questions.json",
    "amber": "query/query_all.json",
}


@pytest.mark.parametrize(("kind", "name"), UNKNOWN_COLUMNS.items())
@pytest.mark.parametrize("row", ['{"x": 1}', "7", '{"label": [1], "text": {}}'])
def test_unknown_columns_are_one_line(
    kind: str, name: str, row: str, tmp_path: Path
) -> None:
    folder = CASES[kind].make(tmp_path / "published")
    for file in folder.glob("coco_pope_*"):
        file.unlink()
    is_lines = name.endswith(".jsonl") or kind == "pope"
    is_object = kind == "gqa"
    content = f'{{"1": {row}}}' if is_object else f"[{row}]"
    (folder / name).write_text(f"{row}\n" if is_lines else content)
    suite = suite_of(kind, folder)
    with pytest.raises(UserError) as error:
        suite.prompts("test", ImageStore(tmp_path / "store"), [])
    message = str(error.value)
    assert "\n" not in message
    assert "got none of use: " in message


def test_an_id_that_comes_twice_is_counted(tmp_path: Path) -> None:
    folder = published.llava_folder(tmp_path / "llava")
    file = folder / "questions.jsonl"
    file.write_text(file.read_text() * 2)
    suite = suite_of("llava_bench", folder)
    store = ImageStore(tmp_path / "store")
    assert reasons_of(suite, store) == {"duplicate_id": 2}
    assert len(suite.prompts("test", store, [])["questions"]) == 2


def test_a_file_that_breaks_off_is_one_line(tmp_path: Path) -> None:
    folder = published.gqa_folder(tmp_path / "gqa")
    file = folder / "testdev_balanced_questions.json"
    file.write_text(file.read_text()[:-5])
    suite = suite_of("gqa", folder)
    with pytest.raises(
        UserError, match=r"expected readable JSON, got: .*fetch it again$"
    ):
        suite.prompts("test", ImageStore(tmp_path / "store"), [])


def test_splits_share_no_picture_and_lose_none(tmp_path: Path) -> None:
    folder = tmp_path / "pope"
    lines = []
    for number in range(40):
        line = {"question_id": number, "image": f"{number // 2}.png", "text": "Dog?"}
        lines.append({**line, "label": "yes"})
    published.write_lines(folder / "coco_pope_random.json", lines)
    published.write_pictures(folder, [f"{number}.png" for number in range(20)])
    suite = suite_of("pope", folder, validation=0.25)
    store = ImageStore(tmp_path / "store")
    ids = {}
    images = {}
    for split in ("validation", "test"):
        (prompts,) = suite.prompts(split, store, []).values()  # type: ignore[arg-type]
        ids[split] = {prompt.id for prompt in prompts}
        images[split] = {prompt.images[0].sha256 for prompt in prompts}
    assert len(ids["validation"]) == 10
    assert len(ids["test"]) == 30
    assert not images["validation"] & images["test"]
    whole = suite_of("pope", folder)
    assert whole.prompts("validation", store, []) == {"questions": []}
    limited = suite_of("pope", folder, limit=3)
    (prompts,) = limited.prompts("test", store, []).values()
    assert len(prompts) == 6


def test_the_metric_that_picks_a_checkpoint(tmp_path: Path) -> None:
    folder = published.gqa_folder(tmp_path / "gqa")
    suite = suite_of("gqa", folder, validation=0.5)
    store = ImageStore(tmp_path / "store")
    (prompt,) = suite.prompts("validation", store, [])["questions"]
    texts = {prompt.id.removeprefix("gqa/"): "wrong"}
    measurement = suite.measure(answers_of(suite, store, texts, "validation"), None, 5)
    assert measurement.metrics[suite.selecting_metric].value == 0


@pytest.mark.parametrize("kind", CASES)
def test_the_metric_that_picks_is_known_and_has_a_direction(
    kind: str, tmp_path: Path
) -> None:
    suite = suite_of(kind, CASES[kind].make(tmp_path / "published"))
    if kind in ("mmhal", "llava_bench"):
        assert suite.selecting_metric == ""
    else:
        assert suite.metrics[suite.selecting_metric].better == "higher"


def test_answers_are_compared_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = published.llava_folder(tmp_path / "llava")
    store = ImageStore(tmp_path / "store")
    suite = suite_of("llava_bench", folder, compare=True)
    assert suite.compared_tasks == ("questions",)
    answers = answers_of(suite, store, ["Nothing.", "One."])
    verdicts = {"llava_bench/0": Verdict((2, 1)), "llava_bench/1": Verdict((1, 1))}
    comparison = Comparison(answers, verdicts)
    assert suite.measure(answers, comparison, 5).metrics["win_rate"].value == 0.75
    assert suite.measure(answers, None, 5).metrics["win_rate"].value == 0.5
    plain = suite_of("llava_bench", folder)
    assert "win_rate" not in plain.measure(answers, None, 5).metrics
