"""Benchmarks as published, in miniature: folders on disk, and answers to their prompts."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from common.data.images import ImageStore
from common.evaluation import Measurement, Split, SuiteAnswers, count_reasons
from common.records import Dropped
from reward.benchmarks.base import Benchmark
from tests.reward.builders import group

SYNONYMS = """\
person, man, woman, child, baby
train, locomotive
traffic light, stop light
stop sign
bench, pew
bird, goose
dog, puppy
sheep, lamb
tie, bow tie
wine glass
knife, pocketknife
hot dog
chair, seat, stool
dining table, table
toilet, commode
mouse
bus, minibus
"""


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def picture_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 7, 99)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(number))


def encoded_picture(number: int) -> str:
    return base64.b64encode(picture_bytes(number)).decode()


def answers_of(
    suite: Benchmark,
    store: ImageStore,
    texts: Mapping[str, str] | Sequence[str],
    split: Split = "test",
) -> SuiteAnswers:
    """Answers to a suite's prompts: by the item's id, or to all prompts in order."""
    tasks = suite.prompts(split, store, [])
    prompts = [prompt for task in tasks.values() for prompt in task]
    if not isinstance(texts, Mapping):
        ids = [prompt.id.removeprefix(f"{suite.name}/") for prompt in prompts]
        texts = dict(zip(ids, texts, strict=True))
    groups: dict[str, tuple[Any, ...]] = {}
    for task, asked in tasks.items():
        answered = []
        for prompt in asked:
            text = texts.get(prompt.id.removeprefix(f"{suite.name}/"))
            if text is not None:
                answered.append(group(prompt, text, id=f"evaluation/{prompt.id}"))
        groups[task] = tuple(answered)
    return SuiteAnswers(groups)


def reasons_of(suite: Benchmark, store: ImageStore) -> dict[str, int]:
    """Why rows of the published files are not asked."""
    dropped: list[Dropped] = []
    suite.prompts("test", store, dropped)
    return count_reasons(dropped)


def measured(suite: Benchmark, answers: SuiteAnswers) -> dict[str, float]:
    """The metrics' values; every one lies in its interval."""
    measurement = suite.measure(answers, None, 50)
    return values(measurement)


def values(measurement: Measurement) -> dict[str, float]:
    for name, metric in measurement.metrics.items():
        if metric.interval is not None:
            low, high = metric.interval
            assert low <= high, name
    return {name: metric.value for name, metric in measurement.metrics.items()}


# One miniature of each benchmark.


def pope_folder(root: Path) -> Path:
    questions = {
        "random": [("a.png", "dog", "yes"), ("a.png", "cup", "no"), ("b.png", "cat", "no")],
        "popular": [("a.png", "dog", "yes"), ("b.png", "tree", "yes")],
    }  # fmt: skip
    for split, rows in questions.items():
        lines = []
        for number, (image, thing, label) in enumerate(rows, start=1):
            question = f"Is there a {thing} in the image?"
            line = {"question_id": number, "image": image, "text": question}
            lines.append({**line, "label": label})
        write_lines(root / f"coco_pope_{split}.json", lines)
    write_pictures(root, ["a.png", "b.png"])
    return root


CATEGORIES = ["person", "train", "dog", "hot dog", "bench", "chair", "toilet", "bus"]


def coco_folder(root: Path) -> Path:
    """Four pictures: a man with a dog at a bench, hot dogs on a table, a toilet, and one without annotations."""
    images = []
    for number in (1, 2, 3, 4):
        name = f"COCO_val2014_{number:012}.jpg"
        images.append({"id": number, "file_name": name})
    boxes = [(1, "person"), (1, "dog"), (1, "dog"), (2, "hot dog"), (3, "toilet")]
    annotations = []
    for image_id, name in boxes:
        category = CATEGORIES.index(name) + 1
        outline = [[1.5, 2.0, 3.0, 4.0, 5.0, 6.0]]
        annotations.append(
            {"image_id": image_id, "category_id": category, "segmentation": outline}
        )
    categories = []
    for number, name in enumerate(CATEGORIES, start=1):
        categories.append({"id": number, "name": name})
    content = {"info": {"year": 2014}, "images": images, "licenses": []}
    write_json(
        root / "instances_val2014.json",
        {**content, "annotations": annotations, "categories": categories},
    )
    captions = [
        {"image_id": 1, "caption": "A man and his puppy sit on a bench."},
        {"image_id": 2, "caption": "Two hot dogs lie on a table."},
    ]
    write_json(root / "captions_val2014.json", {**content, "annotations": captions})
    (root / "synonyms.txt").write_text(SYNONYMS)
    write_pictures(root, [image["file_name"] for image in images])
    return root


RELATION = {
    "dog": ["puppy", "animal"],
    "tree": ["plant", "leaf"],
    "sky": ["cloud"],
    "person": ["man", "woman"],
    "ball": ["toy"],
}


def amber_folder(root: Path) -> Path:
    queries = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 2, "image": "AMBER_2.jpg", "query": "Describe this image."},
    ]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "type": "generative", "truth": ["dog", "tree"], "hallu": ["person", "ball"]},
        {"id": 2, "type": "generative", "truth": ["sky"], "hallu": ["dog"]},
    ]  # fmt: skip
    kinds = [
        ("discriminative-hallucination", "no"),
        ("discriminative-hallucination", "no"),
        ("discriminative-attribute-state", "yes"),
        ("discriminative-attribute-number", "no"),
        ("relation", "yes"),
    ]
    for number, (kind, truth) in enumerate(kinds, start=1005):
        query = f"Is the sky of question {number} sunny?"
        queries.append({"id": number, "image": "AMBER_1.jpg", "query": query})
        annotations.append({"id": number, "type": kind, "truth": truth})
    write_json(root / "query" / "query_all.json", queries)
    write_json(root / "annotations.json", annotations)
    write_json(root / "relation.json", RELATION)
    (root / "safe_words.txt").write_text("cloud\nbackground\n")
    write_pictures(root, ["AMBER_1.jpg", "AMBER_2.jpg"])
    return root


def object_hal_folder(root: Path) -> Path:
    rows = []
    for number, image_id in enumerate((1, 2)):
        row = {"org_idx": number, "image_id": image_id, "question": "What is here?"}
        rows.append({**row, "image": encoded_picture(image_id)})
    write_lines(root / "obj_halbench_300_with_image.jsonl", rows)
    return root


def mmhal_folder(root: Path) -> Path:
    entries = []
    for number in (1, 2):
        entries.append(
            {
                "question_type": "attribute",
                "question_topic": "food",
                "image_id": f"id{number}",
                "image_src": f"https://example.org/x/{number}_o.jpg",
                "image_content": ["Food"],
                "question": f"What colour is {number}?",
                "gt_answer": "Red.",
                "model_answer": "",
            }
        )
    write_json(root / "response_template.json", entries)
    write_pictures(root / "images", ["1_o.jpg", "2_o.jpg"])
    return root


def llava_folder(root: Path) -> Path:
    rows = []
    for number in (0, 1):
        row = {"question_id": number, "image": "001.jpg", "category": "conv"}
        rows.append({**row, "text": f"What is {number}?"})
    write_lines(root / "questions.jsonl", rows)
    write_pictures(root / "images", ["001.jpg"])
    return root


def hallusion_rows() -> list[dict[str, Any]]:
    """VD set 0: two questions on figures 0 and 1. VS set 0: one question without a figure, and on figure 1."""
    places = [
        ("VD", "chart", "0", "0", "0", "1", "1"),
        ("VD", "chart", "0", "0", "1", "1", "0"),
        ("VD", "chart", "0", "1", "0", "1", "0"),
        ("VD", "chart", "0", "1", "1", "1", "1"),
        ("VS", "map", "0", "0", "0", "0", "1"),
        ("VS", "map", "0", "1", "0", "1", "1"),
    ]
    rows = []
    for category, sub, set_id, figure, question, visual, answer in places:
        rows.append(
            {
                "category": category,
                "subcategory": sub,
                "visual_input": visual,
                "set_id": set_id,
                "figure_id": figure,
                "question_id": question,
                "question": f"Is {question} right?",
                "gt_answer": answer,
                "gt_answer_details": "Because.",
            }
        )
    return rows


def hallusion_folder(root: Path) -> Path:
    write_json(root / "HallusionBench.json", hallusion_rows())
    write_pictures(root / "VD" / "chart", ["0_0.png", "0_1.png"])
    write_pictures(root / "VS" / "map", ["0_1.png"])
    return root


def mmvp_folder(root: Path) -> Path:
    lines = ["Index,Question,Options,Correct Answer"]
    answers = "abab"
    for number, answer in enumerate(answers, start=1):
        lines.append(f"{number},Is the door open?,(a) Open (b) Closed,({answer})")
    root.mkdir(parents=True, exist_ok=True)
    (root / "Questions.csv").write_text("\n".join(lines) + "\n")
    write_pictures(root / "MMVP Images", [f"{number}.jpg" for number in (1, 2, 3, 4)])
    return root


def textvqa_folder(root: Path) -> Path:
    rows = [
        {
            "question_id": 34602,
            "image_id": "0054c91397f2fe05",
            "question": "What is the brand?",
            "answers": ["nous les gosses"] * 3 + ["dakota"] * 5 + ["the dakota"] * 2,
        },
        {
            "question_id": 34603,
            "image_id": "005635e119b9f32f",
            "question": "How many?",
            "answers": ["two"] * 2 + ["3"] * 8,
        },
    ]
    write_json(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    names = [f"{row['image_id']}.jpg" for row in rows]
    write_pictures(root / "train_images", names)
    return root


def gqa_folder(root: Path) -> Path:
    questions = {
        "201307251": {"question": "Is it blue?", "imageId": "n1", "answer": "no"},
        "201307252": {"question": "What is it?", "imageId": "n2", "answer": "cup"},
    }
    write_json(root / "testdev_balanced_questions.json", questions)
    write_pictures(root / "images", ["n1.jpg", "n2.jpg"])
    return root
