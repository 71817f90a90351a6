"""The objects that a caption names, by CHAIR's rules, and CHAIR on COCO's files, against another way to count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config.benchmarks import ChairBenchmark, ObjectHalBenchmark
from common.data.images import ImageStore
from common.errors import UserError
from reward.benchmarks.chair import Chair
from reward.benchmarks.coco import image_id_of
from reward.benchmarks.object_halbench import ObjectHalBench
from reward.benchmarks.objects import ObjectWords
from reward.benchmarks.plurals import plurals
from tests.reward.benchmarks.published import (
    SYNONYMS,
    answers_of,
    coco_folder,
    measured,
    object_hal_folder,
    reasons_of,
    values,
    write_json,
)


def words() -> ObjectWords:
    lines = [line.split(", ") for line in SYNONYMS.splitlines()]
    return ObjectWords(lines)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A man and two women.", ["person", "person"]),
        ("Children with knives near buses", ["person", "knife", "bus"]),
        ("Geese, mice and sheep", ["bird", "mouse", "sheep"]),
        ("Two Hot Dogs on a table", ["hot dog", "dining table"]),
        ("a hot, dog-tired dog", ["dog"]),
        ("a hot, dog", ["dog"]),
        ("a hot dog and a dog", ["hot dog", "dog"]),
        ("traffic lights, a stop light and a stop sign", ["traffic light", "traffic light", "stop sign"]),
        ("a wine glass; wine glasses; a glass", ["wine glass", "wine glass"]),
        ("a baby bird and adult sheep, a baby", ["bird", "sheep", "person"]),
        ("passenger trains on a train track", ["train"]),
        ("a bow tie", ["tie"]),
        ("a toilet seat", ["toilet"]),
        ("the seat of the toilet by a stool", ["toilet", "chair"]),
        ("an empty seat", ["chair"]),
        ("a mousetrap, a seated chairman", []),
        ("", []),
    ],
)  # fmt: skip
def test_mentions(text: str, named: list[str]) -> None:
    assert words().named(text) == named


def test_a_mention_says_where_it_stands() -> None:
    text = "Here: two Hot\ndogs!"
    (mention,) = words().mentions(text)
    assert text[mention.begin : mention.end] == "Hot\ndogs"


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("policeman", "policemen"),
        ("human", "humans"),
        ("grandchild", "grandchildren"),
        ("fox", "foxes"),
        ("ox", "oxen"),
        ("pony", "ponies"),
        ("monkey", "monkeys"),
        ("calf", "calves"),
        ("couch", "couches"),
        ("potato", "potatoes"),
        ("wine glass", "wine glasses"),
    ],
)
def test_plurals(noun: str, plural: str) -> None:
    assert plural in plurals(noun)


def reference_names(text: str) -> list[str]:
    """The same rules in another way: the longest phrase first, by one pattern, with plurals spelled out by hand."""
    phrases: dict[str, str | None] = {"home plate": None, "train track": None}
    by_hand = {"women": "woman", "men": "man", "children": "child", "geese": "goose"}
    by_hand |= {"mice": "mouse", "knives": "knife", "buses": "bus", "benches": "bench"}
    for line in SYNONYMS.splitlines():
        name, *others = line.split(", ")
        for word in (name, *others):
            phrases[word] = name
            phrases[f"{word}s"] = name
    for plural, singular in by_hand.items():
        phrases[plural] = phrases[singular]
    phrases["toilet seat"] = "toilet"
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = r"(?<![\w-])(?:" + "|".join(longest_first) + r")(?![\w-])"
    names = []
    matches = re.findall(pattern, text.lower())
    for phrase in matches:
        name = phrases[phrase]
        is_seat = phrase == "seat" and "toilet" in text.lower()
        if name is not None and not is_seat:
            names.append(name)
    return names


CAPTIONS = {
    "1": "A man and his dogs next to a bus. The bus is red.",
    "2": "Hot dogs and a dog on a table.",
    "3": "A toilet seat near two benches.",
}
TRUE_OBJECTS = {
    "1": {"person", "dog", "bench"},
    "2": {"hot dog", "dining table"},
    "3": {"toilet"},
}


def chair_suite(root: Path) -> Chair:
    coco_folder(root)
    synonyms = str(root / "synonyms.txt")
    return Chair(ChairBenchmark(path=str(root), synonyms=synonyms))


def test_chair_on_coco_by_hand(tmp_path: Path) -> None:
    """1: person dog bus bus, 2 of 4 made up, 2 of 3 named. 2: hot dog, dog, table: 1 of 3, 2 of 2.

    3: toilet bench: 1 of 2, 1 of 1. CHAIR_s 3/3; CHAIR_i (2 + 1 + 1) / (4 + 3 + 2) = 4/9; recall 5/6.
    """
    suite = chair_suite(tmp_path / "coco")
    store = ImageStore(tmp_path / "store")
    answers = answers_of(suite, store, CAPTIONS)
    value = measured(suite, answers)
    assert value["chair_s"] == 1
    assert value["chair_i"] == pytest.approx(4 / 9)
    assert value["recall"] == pytest.approx(5 / 6)
    assert value["mean_length"] == pytest.approx((13 + 8 + 6) / 3)


def test_chair_equals_another_way_to_count(tmp_path: Path) -> None:
    suite = chair_suite(tmp_path / "coco")
    answers = answers_of(suite, ImageStore(tmp_path / "store"), CAPTIONS)
    num_mentions = num_made_up = num_named = 0
    for image_id, text in CAPTIONS.items():
        names = reference_names(text)
        true = TRUE_OBJECTS[image_id]
        num_mentions += len(names)
        num_made_up += sum(1 for name in names if name not in true)
        num_named += len(true & set(names))
    value = measured(suite, answers)
    assert value["chair_i"] == pytest.approx(num_made_up / num_mentions)
    assert value["recall"] == pytest.approx(num_named / 6)


def test_pictures_without_annotations_are_counted(tmp_path: Path) -> None:
    suite = chair_suite(tmp_path / "coco")
    store = ImageStore(tmp_path / "store")
    assert reasons_of(suite, store) == {"no_annotation": 1}
    measurement = suite.measure(answers_of(suite, store, CAPTIONS), None, 10)
    assert measurement.counts["num_answers"] == 3


def test_made_up_objects_are_marked(tmp_path: Path) -> None:
    suite = chair_suite(tmp_path / "coco")
    (prompts,) = suite.prompts("test", ImageStore(tmp_path / "store"), []).values()
    prompt = next(prompt for prompt in prompts if prompt.id == "chair/1")
    shown = suite.show(prompt, CAPTIONS["1"])
    assert [CAPTIONS["1"][begin:end] for begin, end, _ in shown.marks] == ["bus", "bus"]
    assert shown.notes == ("bench",)


def test_a_category_that_no_word_names_is_one_line(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    (tmp_path / "synonyms.txt").write_text("dog, puppy\n")
    synonyms = str(tmp_path / "synonyms.txt")
    suite = Chair(ChairBenchmark(path=str(tmp_path), synonyms=synonyms))
    with pytest.raises(UserError, match=r"synonyms file, got 'person'; add it there$"):
        suite.prompts("test", ImageStore(tmp_path / "store"), [])


def test_annotations_that_are_none_are_one_line(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    write_json(tmp_path / "captions_val2014.json", {"annotations": [{"id": 1}]})
    synonyms = str(tmp_path / "synonyms.txt")
    suite = Chair(ChairBenchmark(path=str(tmp_path), synonyms=synonyms))
    with pytest.raises(
        UserError, match=r"COCO's annotations in captions_val2014\.json"
    ):
        suite.prompts("test", ImageStore(tmp_path / "store"), [])


def test_object_halbench_measures_with_annotations_only(tmp_path: Path) -> None:
    """1: man, bus: 1 of 2 made up. 2: hot dogs: none of 1. CHAIR_i 1/3, CHAIR_s 1/2."""
    folder = object_hal_folder(tmp_path / "hal")
    coco = coco_folder(tmp_path / "coco")
    store = ImageStore(tmp_path / "store")
    texts = ["A man and a bus.", "Hot dogs."]
    plain = ObjectHalBench(ObjectHalBenchmark(path=str(folder)))
    assert set(measured(plain, answers_of(plain, store, texts))) == {"mean_length"}
    settings = ObjectHalBenchmark(
        path=str(folder), annotations=str(coco), synonyms=str(coco / "synonyms.txt")
    )
    suite = ObjectHalBench(settings)
    value = values(suite.measure(answers_of(suite, store, texts), None, 10))
    assert value["chair_i"] == pytest.approx(1 / 3)
    assert value["chair_s"] == 0.5


@pytest.mark.parametrize(
    ("facts", "image_id"),
    [
        ({"image_id": 7}, 7),
        ({"image_id": "000000310196"}, 310196),
        ({"image": "val2014/COCO_val2014_000000310196.jpg"}, 310196),
        ({"image_id": True}, None),
        ({"image": "dog.jpg"}, None),
        ({}, None),
    ],
)
def test_the_id_of_a_picture(facts: dict[str, object], image_id: int | None) -> None:
    assert image_id_of(facts) == image_id
