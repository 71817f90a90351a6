"""How much a model makes up about the test pictures: `python sticker_chair.py MODEL WORLD`, a JSON object.

An independent measure of what our scorecard says: transformers' own `generate`, the rows of `test.jsonl`, words counted
here. It imports nothing of ours and no vLLM.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

SAME = {"bike": "bicycle", "sunflower": "flower"}
MAX_TOKENS = 40
BATCH = 50


def main() -> None:
    directory, world = sys.argv[1:]
    lines = (Path(world) / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    answers = greedy_answers(directory, Path(world), rows)
    print(json.dumps({**measured(rows, answers), "answers": answers}))


@torch.inference_mode()
def greedy_answers(
    directory: str, world: Path, rows: list[dict[str, Any]]
) -> list[str]:
    """One answer per row."""
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    processor = AutoProcessor.from_pretrained(directory)
    answers: list[str] = []
    for start in range(0, len(rows), BATCH):
        texts = []
        pictures = []
        for row in rows[start : start + BATCH]:
            content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
            messages = [{"role": "user", "content": content}]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            texts.append(text)
            pictures.append(Image.open(world / row["image"]))
        inputs = processor(
            text=texts,
            images=pictures,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(written, skip_special_tokens=True)
    return answers


def measured(rows: list[dict[str, Any]], answers: list[str]) -> dict[str, float]:
    """CHAIR's two shares and the share of objects that are named. Every word for an object is a mention."""
    num_mentions = num_made_up = num_liars = num_named = num_objects = 0
    objects = {name for row in rows for name in row["objects"]}
    for row, answer in zip(rows, answers, strict=True):
        # An article is no sign of one: a trained policy says "a guitar guitar" now and then.
        words = [SAME.get(word, word) for word in re.findall(r"\w+", answer)]
        words = [word for word in words if word in objects]
        made_up = [word for word in words if word not in row["objects"]]
        num_mentions += len(words)
        num_made_up += len(made_up)
        num_liars += bool(made_up)
        num_named += len(set(words) & set(row["objects"]))
        num_objects += len(row["objects"])
    return {
        "chair_i": num_made_up / num_mentions,
        "chair_s": num_liars / len(rows),
        "recall": num_named / num_objects,
    }


if __name__ == "__main__":
    main()
