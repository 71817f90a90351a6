"""The judge by annotations: what it costs to make objects up, and pictures that nobody annotated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common import config
from common.errors import UserError
from common.protocols import Judge
from common.records import Dropped, ImageRef
from reward.judges.factory import check_judge, judge_identity, make_judge
from tests.reward.benchmarks.published import coco_folder
from tests.reward.builders import group, prompt
from tests.reward.judging import verdict_of


def settings_of(folder: Path, miss_cost: float = 0.5) -> config.ChairJudge:
    coco_folder(folder)
    return config.ChairJudge(
        annotations=str(folder),
        synonyms=str(folder / "synonyms.txt"),
        miss_cost=miss_cost,
    )


def judge_of(folder: Path, miss_cost: float = 0.5) -> Judge:
    return make_judge(settings_of(folder, miss_cost))


def test_scores_by_hand(tmp_path: Path) -> None:
    """Image 1 has person, dog, bench. Two buses: -2, and bench missed: -½. All named: 0. Silence: three missed."""
    asked = prompt({"image_id": 1})
    rolled = group(
        asked, "A man, a dog, a bus and a bus.", "Men with puppies on benches.", "Hm."
    )
    verdict = verdict_of(judge_of(tmp_path), rolled)
    assert not isinstance(verdict, Dropped)
    assert verdict.scores == (-2.5, 0.0, -1.5)
    assert verdict.notes[0] == "no bus; no bus; missed bench"
    assert verdict.notes[1] == "flawless"


def test_misses_may_be_free(tmp_path: Path) -> None:
    rolled = group(prompt({"image_id": 1}), "A bus.", "Hm.")
    verdict = verdict_of(judge_of(tmp_path, miss_cost=0), rolled)
    assert not isinstance(verdict, Dropped)
    assert verdict.scores == (-1.0, 0.0)


def test_the_id_may_stand_in_the_name_of_the_picture(tmp_path: Path) -> None:
    asked = prompt({"image": "val2014/COCO_val2014_000000000003.jpg"})
    verdict = verdict_of(judge_of(tmp_path), group(asked, "A toilet seat."))
    assert not isinstance(verdict, Dropped)
    assert verdict.scores == (0.0,)


def test_a_file_is_annotated_by_its_name(tmp_path: Path) -> None:
    """The prompts of a run have their pictures where they lie; those of a set of ours are named by their hash."""
    judge = judge_of(tmp_path)
    for name, is_known in (("COCO_val2014_000000000003", True), ("ab3", False)):
        picture = ImageRef("ab3", f"/pictures/{name}.jpg")
        asked = replace(prompt(), images=(picture,))
        verdict = verdict_of(judge, group(asked, "A toilet seat."))
        assert isinstance(verdict, Dropped) != is_known


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"image_id": 4}, "expected annotations of image 4, got none"),
        ({"image_id": 77}, "expected annotations of image 77, got none"),
        ({"label": "x"}, "expected a picture's id in the column image_id or in"),
        (None, "expected a picture's id"),
    ],
)
def test_without_annotations_there_is_no_verdict(
    tmp_path: Path, truth: dict | None, message: str
) -> None:
    lost = verdict_of(judge_of(tmp_path), group(prompt(truth), "A dog."))
    assert isinstance(lost, Dropped)
    assert lost.reason == "judge_failed"
    assert message in lost.detail


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "captions_val2014.json").unlink()
    for look in (make_judge, check_judge, judge_identity):
        with pytest.raises(
            UserError, match=r"^reward\.judge\.annotations: .*captions_"
        ):
            look(settings)
    missing = settings.model_copy(update={"synonyms": str(tmp_path / "none.txt")})
    with pytest.raises(UserError, match=r"^reward\.judge\.synonyms: "):
        make_judge(missing)


def test_the_annotations_are_part_of_the_identity(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = judge_identity(settings)
    file = tmp_path / "captions_val2014.json"
    file.write_text(file.read_text().replace("puppy", "horse"))
    assert judge_identity(settings) != before
