"""Data sets on disk: what is read equals what was written, and what is broken is named."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data.datasets import (
    IMAGES,
    PAIRS,
    iter_pairs,
    read_pairs,
    read_prompts,
    write_pairs,
    write_prompts,
)
from common.data.images import ImageStore, read
from common.data.pair_writer import PairWriter
from common.data.rows import PAIR_SCHEMA, PROMPT_SCHEMA
from common.end_marks import is_one_answer_twice
from common.errors import UserError
from common.records import (
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)

TOKENS = st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
LOGPROBS = st.none() | st.lists(st.floats(max_value=0), max_size=4).map(tuple)
RESPONSES = st.builds(Response, st.text(max_size=20), TOKENS, LOGPROBS)


@st.composite
def prompts(draw: st.DrawFn, root: Path) -> Prompt:
    images = tuple(
        ImageRef(sha, str(root / sha[:2] / sha))
        for sha in draw(st.lists(st.text("abcdef", min_size=3)))
    )
    texts = draw(st.lists(st.text(max_size=8), max_size=3))
    roles = st.sampled_from(("system", "user", "assistant"))
    first = Message(
        draw(roles),
        (*(Part("image") for _ in images), *(Part("text", text) for text in texts)),
    )
    messages = (
        first,
        *draw(st.lists(st.builds(Message, roles, st.just(())), max_size=2)),
    )
    truth = draw(st.none() | st.dictionaries(st.text(max_size=4), JSON, max_size=3))
    return Prompt(
        draw(st.text(min_size=1, max_size=6)),
        messages,
        images,
        draw(st.none() | st.text()),
        truth,
    )


def pairs(root: Path) -> st.SearchStrategy[list[PreferencePair]]:
    score = st.floats(allow_nan=False)
    one = st.builds(
        PreferencePair,
        id=st.text(max_size=6),
        prompt=prompts(root),
        chosen=RESPONSES,
        rejected=RESPONSES,
        source=st.text(max_size=4),
        weight_version=st.none() | st.integers(0, 2**40),
        prompt_token_ids=TOKENS,
        scores=st.none() | st.tuples(score, score),
    )
    different = one.filter(lambda pair: not is_one_answer_twice(pair))
    return st.lists(different, max_size=4, unique_by=lambda pair: pair.id)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_round_trip_is_exact(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        written = data.draw(pairs(directory / IMAGES))
        write_pairs(directory, written)
        assert read_pairs(directory) == written
        asked = {pair.prompt.id: pair.prompt for pair in written}
        write_prompts(directory, asked.values())
        assert read_prompts(directory) == list(asked.values())


def make_pair(store: ImageStore, number: int = 0) -> PreferencePair:
    image = store.add(Image.new("RGB", (4, 4), (number, 0, 0)))
    prompt = Prompt(
        f"p{number}",
        (Message("user", (Part("image"), Part("text", "What?"))),),
        (image,),
        "A cat.",
        {"a": 1},
    )
    return PreferencePair(
        f"bdhs/p{number}", prompt, Response("A cat."), Response("A dog."), "bdhs"
    )


def test_a_set_that_knows_no_log_probs_still_reads(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    pair = make_pair(ImageStore(tmp_path / "set" / IMAGES))
    write_pairs(tmp_path / "set", [pair])
    path = tmp_path / "set" / PAIRS
    table = pq.read_table(path)
    fields: list[pa.Field] = []
    for field in table.schema:
        if field.name in ("chosen", "rejected"):
            text, token_ids, _ = field.type
            field = pa.field(field.name, pa.struct([text, token_ids]))
        fields.append(field)
    pq.write_table(table.cast(pa.schema(fields)), path)
    assert "token_logprobs" not in str(pq.read_schema(path))
    assert read_pairs(tmp_path / "set") == [pair]
    assert list(iter_pairs(tmp_path / "set")) == [pair]


def test_images_from_elsewhere_are_copied_and_the_set_can_move(tmp_path: Path) -> None:
    pair = make_pair(ImageStore(tmp_path / "elsewhere"))
    write_pairs(tmp_path / "set", [pair])
    (tmp_path / "set").rename(tmp_path / "moved")
    (ref,) = read_pairs(tmp_path / "moved")[0].prompt.images
    assert Path(ref.path).is_relative_to(tmp_path / "moved" / IMAGES)
    assert read(ref).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("path_outside", {"images": [{"sha256": "x", "path": "../../secret.png"}]}),
        ("image_missing", {"images": [{"sha256": "x", "path": "loop.png"}]}),
        ("image_count", {"images": []}),
        ("bad_truth", {"truth": "{"}),
        ("bad_truth", {"truth": '{"a": ' + "[" * 100_000}),
        ("bad_truth", {"truth": "[1]"}),
        (
            "bad_row",
            {"messages": [{"role": "robot", "parts": [{"kind": "image", "text": ""}]}]},
        ),
        ("bad_row", {"messages": None}),
        ("bad_row", {"id": None}),
    ],
)
def test_a_broken_row_is_counted_or_an_error(
    tmp_path: Path, reason: str, change: dict[str, object]
) -> None:
    write_prompts(
        tmp_path,
        [make_pair(ImageStore(tmp_path / IMAGES), number).prompt for number in (1, 2)],
    )
    (tmp_path / IMAGES / "loop.png").symlink_to("loop.png")
    rows = pq.read_table(tmp_path / "prompts.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([rows[0] | change, rows[1]], schema=PROMPT_SCHEMA),
        tmp_path / "prompts.parquet",
    )
    dropped: list[Dropped] = []
    assert [prompt.id for prompt in read_prompts(tmp_path, dropped)] == ["p2"]
    assert [drop.reason for drop in dropped] == [reason]
    with pytest.raises(UserError):
        read_prompts(tmp_path)


def test_a_row_of_broken_text_costs_no_other(tmp_path: Path) -> None:
    good = [make_pair(ImageStore(tmp_path / IMAGES), number) for number in range(9)]
    write_pairs(tmp_path, good)
    table = pq.read_table(tmp_path / PAIRS)
    sources = pa.array(
        [b"\xff" if number == 5 else b"bdhs" for number in range(9)]
    ).view(pa.string())
    pq.write_table(
        table.set_column(table.schema.get_field_index("source"), "source", sources),
        tmp_path / PAIRS,
    )
    for reads in (read_pairs, iter_pairs):
        dropped: list[Dropped] = []
        assert list(reads(tmp_path, dropped)) == good[:5] + good[6:]
        assert [drop.reason for drop in dropped] == ["bad_row"]
        with pytest.raises(
            UserError, match=r"row 5 \(unreadable\).*UnicodeDecodeError"
        ):
            list(reads(tmp_path))


def test_second_row_of_an_id_is_dropped(tmp_path: Path) -> None:
    pair = make_pair(ImageStore(tmp_path / IMAGES))
    write_pairs(tmp_path, [pair, replace(pair, source="other")])
    dropped: list[Dropped] = []
    assert read_pairs(tmp_path, dropped) == [pair]
    assert dropped[0].reason == "duplicate_id"


def test_missing_damaged_and_foreign_files_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got none"):
        read_pairs(tmp_path)
    (tmp_path / PAIRS).write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match="write it again") as damaged:
        read_pairs(tmp_path)
    pq.write_table(pa.table({"question": ["?"]}), tmp_path / PAIRS)
    with pytest.raises(UserError, match="columns id, prompt") as foreign:
        read_pairs(tmp_path)
    assert "\n" not in str(damaged.value) + str(foreign.value)


def test_writer_goes_on_after_every_kind_of_stop(tmp_path: Path) -> None:
    """Shard, stop, shard, finish: pairs in the given order, notes of both processes."""
    with PairWriter(tmp_path, {"rho": 1}) as writer:
        two, one = make_pair(writer.store, 2), make_pair(writer.store, 1)
        writer.append([two], [{"id": "p2"}])
    (tmp_path / "shards" / ".00001.parquet.77.partial").write_bytes(b"half")
    with PairWriter(tmp_path, {"rho": 1}) as writer:
        assert writer.notes == [{"id": "p2"}] and not writer.complete
        writer.append([one], [{"id": "p1"}])
        writer.append([], [{"id": "p0"}])
        assert [note["id"] for note in writer.notes] == ["p2", "p1", "p0"]
        writer.finish({"num_pairs": 2}, ["p0", "p1", "p2"])
    assert read_pairs(tmp_path) == [one, two]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "images", "pairs.parquet", "spec.json", "stats.json"
    ]  # fmt: skip
    with PairWriter(tmp_path, {"rho": 1}) as writer:
        assert writer.complete


def test_writer_refuses_another_spec_a_second_writer_and_foreign_pairs(
    tmp_path: Path,
) -> None:
    with (
        PairWriter(tmp_path / "a", {"rho": 1}),
        pytest.raises(UserError, match="second"),
    ):
        PairWriter(tmp_path / "a", {"rho": 1})
    with PairWriter(tmp_path / "a", {"rho": 0.8}) as writer:
        writer.append([], [{"id": "p0"}])
    with pytest.raises(UserError, match=r"rho = 0\.8.*rho = 0\.9"):
        PairWriter(tmp_path / "a", {"rho": 0.9})
    (tmp_path / "b").mkdir()
    pq.write_table(PAIR_SCHEMA.empty_table(), tmp_path / "b" / PAIRS)
    with pytest.raises(UserError, match=r"without it"):
        PairWriter(tmp_path / "b", {"rho": 1})
