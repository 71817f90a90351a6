"""The export of a pair set, and its way back through the importer `trl`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.import_data import main
from cluster.jobs import export_job, import_job
from common.data.datasets import (
    IMAGES,
    STATS,
    read_pairs,
    write_pairs,
)
from common.data.images import ImageStore
from common.data.trl_format import TRAIN
from common.importers import build
from common.records import Message, Part, PreferencePair, Prompt, Response
from common.sources import RLOO


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


def make_pair(store: ImageStore, number: int) -> PreferencePair:
    """A pair that uses every field."""
    images = tuple(
        store.add(Image.new("RGB", (64, 64), (number, shade, 9)))
        for shade in (1, 2)[: 1 + number % 2]
    )
    parts = (*(Part("image") for _ in images), Part("text", f"What {number}?"))
    messages = (Message("system", (Part("text", "Be brief."),)), Message("user", parts))
    prompt = Prompt(
        f"p{number // 2}",
        messages,
        images,
        "A cat.",
        {"shapes": [[1, 2.5, None]], "ß": "x"},
    )
    return PreferencePair(
        f"online/{number}", prompt, Response("A cat.", (5, 6, 2)), Response("A dog.", None), "online", 3 + number,
        (1, 32000, 32000, 7), (0.1 + number, -1e300),
    )  # fmt: skip


def export(directory: Path, out: Path) -> None:
    assert main(["export", str(directory), "--out", str(out)]) == 0


def by_hash(pair: PreferencePair) -> Any:
    """A pair with its images' hashes in place of their paths."""
    return replace(
        pair,
        prompt=replace(
            pair.prompt, images=tuple(image.sha256 for image in pair.prompt.images)
        ),
    )  # type: ignore[arg-type]


def there_and_back(folder: Path, pairs: list[PreferencePair]) -> None:
    export(folder / "set", folder / "trl")
    assert (
        main(
            [
                "trl",
                str(folder / "trl" / TRAIN),
                "--out",
                str(folder / "back"),
            ]
        )
        == 0
    )
    assert [by_hash(pair) for pair in read_pairs(folder / "back")] == [
        by_hash(pair) for pair in pairs
    ]


def test_export_and_import_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_job, "TABLE_BYTES", 1)
    pairs = [
        make_pair(ImageStore(tmp_path / "set" / IMAGES), number) for number in range(6)
    ]
    pairs.append(
        replace(
            pairs[0],
            id="text",
            prompt=replace(
                pairs[0].prompt, images=(), messages=pairs[0].prompt.messages[:1]
            ),
        )
    )
    pairs[-1] = replace(
        pairs[-1],
        prompt=replace(
            pairs[-1].prompt, messages=(Message("user", (Part("text", "1+1?"),)),)
        ),
    )
    pairs.append(
        replace(
            pairs[0],
            id="equal",
            source=RLOO,
            rejected=pairs[0].chosen,
            scores=(0.5, -0.5),
        )
    )
    write_pairs(tmp_path / "set", pairs)
    there_and_back(tmp_path, pairs)
    for ref in read_pairs(tmp_path / "back")[1].prompt.images:
        assert (
            Path(ref.path).read_bytes()
            == Path(ref.path.replace("/back/", "/set/")).read_bytes()
        )


def test_an_export_holds_a_bounded_amount_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows of 20,000 characters, wherever they are, in tables of up to 50,000 bytes: two tables of three rows."""
    monkeypatch.setattr(export_job, "TABLE_BYTES", 50_000)
    pair, long = make_pair(ImageStore(tmp_path / "set" / IMAGES), 0), "x" * 20_000
    asked = replace(
        pair.prompt,
        messages=(*pair.prompt.messages, Message("user", (Part("text", long),))),
    )
    pairs = [
        replace(pair, chosen=Response(long)),
        replace(pair, rejected=Response(long)),
        replace(pair, prompt=asked),
        replace(pair, prompt=replace(pair.prompt, reference=long)),
        replace(pair, prompt=replace(pair.prompt, truth={"x": long})),
        replace(pair, chosen=Response("x", (12_345,) * 4000)),
    ]
    write_pairs(
        tmp_path / "set",
        [replace(pair, id=f"{number}") for number, pair in enumerate(pairs)],
    )
    export(tmp_path / "set", tmp_path / "trl")
    written = pq.ParquetFile(tmp_path / "trl" / TRAIN).metadata
    assert [
        written.row_group(number).num_rows for number in range(written.num_row_groups)
    ] == [3, 3]


TEXTS = st.text(max_size=12)
ANSWERS = st.builds(
    Response,
    TEXTS,
    st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_valid_pair_survives_the_round_trip(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_pair(ImageStore(folder / "set" / IMAGES), 1)
        turn = Message(
            "user", (Part("image"), Part("image"), Part("text", "x" + data.draw(TEXTS)))
        )
        prompt = replace(
            base.prompt,
            id=data.draw(TEXTS),
            messages=(turn,),
            reference=data.draw(st.none() | TEXTS),
        )
        pair = replace(
            base,
            id=data.draw(TEXTS),
            prompt=prompt,
            chosen=data.draw(ANSWERS),
            rejected=data.draw(ANSWERS),
            source=data.draw(TEXTS),
            weight_version=data.draw(st.none() | st.integers(0, 2**63 - 1)),
            scores=data.draw(st.none() | st.tuples(*[st.floats(allow_nan=False)] * 2)),
        )
        empty = any(
            not side.text.strip() and side.token_ids is None
            for side in (pair.chosen, pair.rejected)
        )
        same = (
            pair.chosen.token_ids == pair.rejected.token_ids
            and pair.chosen.text.strip() == pair.rejected.text.strip()
        )
        write_pairs(folder / "set", [base, pair] if pair.id != base.id else [base])
        there_and_back(
            folder, [base] if empty or same or pair.id == base.id else [base, pair]
        )


def test_export_counts_lost_images_and_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [
        make_pair(ImageStore(tmp_path / "set" / IMAGES), number) for number in (0, 2, 4)
    ]
    write_pairs(tmp_path / "set", pairs)
    Path(pairs[0].prompt.images[0].path).unlink()
    Path(pairs[1].prompt.images[0].path).write_bytes(b"other")
    export(tmp_path / "set", tmp_path / "trl")
    assert "1 pairs of 3" in capsys.readouterr().out
    stats = json.loads((tmp_path / "trl" / STATS).read_text())
    assert stats["dropped"] == {"image_missing": 1, "image_changed": 1}
    export(tmp_path / "set", tmp_path / "trl")
    assert "already complete" in capsys.readouterr().out
    write_pairs(tmp_path / "set", pairs[:2])
    assert main(["export", str(tmp_path / "set"), "--out", str(tmp_path / "trl")]) == 2


def test_an_id_that_comes_twice_is_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the second comes after a kill."""
    monkeypatch.setattr(import_job, "SHARD_RECORDS", 1)
    pairs = [
        make_pair(ImageStore(tmp_path / "set" / IMAGES), number) for number in (0, 1)
    ]
    write_pairs(tmp_path / "set", pairs)
    export(tmp_path / "set", tmp_path / "once")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        (twice / f"{name}.parquet").write_bytes(
            (tmp_path / "once" / TRAIN).read_bytes()
        )
    original = build.outcomes

    def die(importer: Any, number: int, *rest: Any) -> Any:
        if number == 2:
            raise Killed
        return original(importer, number, *rest)

    monkeypatch.setattr(import_job, "outcomes", die)
    with pytest.raises(Killed):
        main(["trl", str(twice), "--out", str(tmp_path / "back")])
    monkeypatch.setattr(import_job, "outcomes", original)
    assert main(["trl", str(twice), "--out", str(tmp_path / "back")]) == 0
    assert len(read_pairs(tmp_path / "back")) == 2
    assert json.loads((tmp_path / "back" / STATS).read_text())["dropped"] == {
        "duplicate_id": 2
    }


def test_an_export_counts_rows_that_are_no_pair(tmp_path: Path) -> None:
    pairs = [
        make_pair(ImageStore(tmp_path / "set" / IMAGES), number) for number in range(3)
    ]
    broken = replace(pairs[1], prompt=replace(pairs[1].prompt, images=()))
    write_pairs(tmp_path / "set", [pairs[0], broken, pairs[2]])
    export(tmp_path / "set", tmp_path / "out")
    stats = json.loads((tmp_path / "out" / STATS).read_text())
    assert stats == {"num_rows": 3, "num_pairs": 2, "dropped": {"image_count": 1}}


def test_datasets_and_trl_take_the_export(tmp_path: Path) -> None:
    """`datasets` decodes the images by itself; TRL's own collator makes a batch with pixels of it, answers last."""
    from datasets import load_dataset
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    from tests.tiny_models import TinyLlava, tiny_llava

    pairs = [
        make_pair(ImageStore(tmp_path / "set" / IMAGES), number) for number in (0, 2)
    ]
    write_pairs(tmp_path / "set", pairs)
    export(tmp_path / "set", tmp_path / "trl")
    rows = load_dataset(
        "parquet",
        data_files=str(tmp_path / "trl" / "*.parquet"),
        cache_dir=str(tmp_path),
        split="train",
    )
    assert [image.getpixel((0, 0)) for row in rows for image in row["images"]] == [
        (0, 1, 9),
        (2, 1, 9),
    ]
    assert rows[0]["prompt"][1]["content"][0]["type"] == "image"
    processor = AutoProcessor.from_pretrained(tiny_llava())
    batch = DataCollatorForVisionPreference(processor)([dict(row) for row in rows])
    assert batch["pixel_values"].shape[0] == 4, (
        "each image once for chosen and once for rejected"
    )
    image_tokens = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert image_tokens == [TinyLlava().num_image_tokens] * 4
    answers = [
        processor.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert ["cat" in answer for answer in answers] == [True, True, False, False]
