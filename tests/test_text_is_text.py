"""From a published row to the learner's tokens: special tokens that are written out are stripped or stay text."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from actors.bdhs.sampling import Generate
from actors.povid.reply import read_reply
from cluster import import_data
from cluster.generate import config_of
from cluster.jobs import bdhs_job, povid_job
from cluster.jobs.engines import CountImageTokens, Engines
from cluster.run.training_data import load_offline, load_prompts
from common.chat import ChatEncoder
from common.config import SHAPES_POLICY, PromptFile, RunConfig
from common.config.jobs import BdhsJobConfig, PovidJobConfig
from common.data.datasets import STATS, read_pairs, write_pairs, write_prompts
from common.data.images import ImageStore
from common.data.records_on_disk import usable
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    PreferencePair,
    Response,
    RolloutGroup,
)
from common.shapes.prompts import caption_prompts
from learner.batch.collate import Collator
from learner.batch.encoded import EncodedPair
from tests.cluster.runs import make_config

QUESTION = "What is seen?"
CIRCLE, STAR = "There is a red circle.", "There is a blue star."
ROWS = {
    "plain": (QUESTION, CIRCLE, STAR),
    "end_of_both": (QUESTION, f"{CIRCLE}</s>", f"{STAR} <|im_end|>\n"),
    "padding": (QUESTION, f"{CIRCLE}<pad><pad>", STAR),
    "inside": (QUESTION, f"{CIRCLE}</s> USER: More? ASSISTANT: Yes.", STAR),
    "in_front": (QUESTION, f"<s>{CIRCLE}", STAR),
    "question": (f"{QUESTION}</s>ASSISTANT: A dog.</s>USER: And now?", CIRCLE, STAR),
    "same_but_for_the_end": (QUESTION, f"{CIRCLE}</s>", CIRCLE),
    "end_alone": (QUESTION, "</s>", STAR),
}


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """The rows as `import_data` makes them a set."""
    images, source = tmp_path / "images", tmp_path / "rows.json"
    images.mkdir()
    Image.new("RGB", (72, 72), "red").save(images / "a.png")
    lines = []
    for name, (question, chosen, rejected) in ROWS.items():
        row = {
            "id": name,
            "images": ["a.png"],
            "conversations": [{"from": "human", "value": f"<image>{question}"}],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        }
        lines.append(row)
    source.write_text(json.dumps(lines))
    out = tmp_path / "set"
    words = ["llama_factory", str(source), "--images", str(images), "--out", str(out)]
    assert import_data.main(words) == 0
    return out


def by_name(pairs: list[PreferencePair]) -> dict[str, PreferencePair]:
    names = list(ROWS)
    named = {}
    for pair in pairs:
        number = pair.id.partition("/")[2].partition(":")[0].partition("/")[0]
        named[names[int(number)]] = pair
    return named


def test_an_import_strips_counts_and_compares(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = by_name(read_pairs(imported))
    assert set(ROWS) - set(pairs) == {"same_but_for_the_end", "end_alone"}
    for name in ("plain", "end_of_both", "padding", "question"):
        assert (pairs[name].chosen.text, pairs[name].rejected.text) == (CIRCLE, STAR)
    assert pairs["inside"].chosen.text == ROWS["inside"][1]
    stats = json.loads((imported / STATS).read_text())
    assert stats["dropped"] == {"pair_identical": 1, "answer_empty": 1}
    # Both of end_of_both, and one each of padding and the two that are dropped.
    assert stats["num_end_marks"] == 5


def test_what_is_imported_trains_as_text(imported: Path) -> None:
    encoder = ChatEncoder(SHAPES_POLICY, 512)
    collator = Collator(encoder)
    bos, end, pad = encoder.tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<pad>"])
    for pair in read_pairs(imported):
        encoded = collator.encode(pair)
        assert isinstance(encoded, EncodedPair)
        prompt_ids = encoded.prompt.token_ids
        assert (prompt_ids.count(bos), prompt_ids.count(end)) == (1, 0)
        for side in (encoded.chosen, encoded.rejected):
            assert side[-1] == end
            assert not {bos, end, pad} & set(side[:-1])


def test_sets_that_were_made_before_are_stripped_when_they_are_read(
    imported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = by_name(read_pairs(imported))["plain"]
    rejected = Response(f"{CIRCLE}</s>")
    pairs = [
        PreferencePair(
            "marked", plain.prompt, Response(f"{CIRCLE}</s>"), plain.rejected, "x"
        ),
        PreferencePair("same", plain.prompt, plain.chosen, rejected, "x"),
    ]
    write_pairs(tmp_path / "old", pairs)
    config = make_config(
        tmp_path, mixture__online_fraction=0, data__offline__path=tmp_path / "old"
    )
    dropped: list[Dropped] = []
    with caplog.at_level(logging.WARNING, "sightline"):
        (marked,) = usable(load_offline(config, []), dropped)
    assert "off, such as in pair marked" in caplog.text
    assert marked.chosen.text == CIRCLE
    assert [(row.id, row.reason) for row in dropped] == [("same", "pair_identical")]
    # The learner itself finds the same, for pairs that never were in such a set.
    refused = Collator(ChatEncoder(SHAPES_POLICY, 512)).encode(pairs[1])
    assert isinstance(refused, Dropped)
    assert refused.reason == "pair_identical"


def marked_prompts(folder: Path) -> None:
    """Captions with an end mark behind the reference, one of them nothing but a mark."""
    prompts = caption_prompts("train", 4, 0, ImageStore(folder / "pictures"))
    marked = []
    for prompt, mark in zip(
        prompts, ("", "</s>", " <|eot_id|>\n", "<pad></s>"), strict=True
    ):
        marked.append(replace(prompt, reference=f"{prompt.reference}{mark}"))
    marked.append(replace(prompts[0], id="mark_alone", reference="</s>"))
    write_prompts(folder / "prompts", marked)


def texts_of(pairs: list[PreferencePair]) -> list[tuple[str, str, str | None]]:
    return [(pair.id, pair.chosen.text, pair.prompt.reference) for pair in pairs]


def test_generated_sets_hold_no_mark_of_a_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked_prompts(tmp_path)
    plain = caption_prompts("train", 4, 0, ImageStore(tmp_path / "pictures"))
    for method, *words in (("povid", "--corrupter", "rules"), ("bdhs",)):
        out = tmp_path / method
        words += ["--out", str(out), "--prompts", str(tmp_path / "prompts")]
        config = config_of([method, *words])
        if isinstance(config, PovidJobConfig):
            povid_job.run(config)
        elif isinstance(config, BdhsJobConfig):
            bdhs_job.run(config, saying("There is a ring.</s>"))
        expected = []
        for prompt in plain:
            pair_id = f"{method}/{prompt.id}"
            expected.append((pair_id, prompt.reference, prompt.reference))
        pairs = read_pairs(out)
        assert texts_of(pairs) == expected
        assert not any("</s>" in pair.rejected.text for pair in pairs)
        stats = json.loads((out / STATS).read_text())
        assert (stats["num_end_marks"], stats["dropped"]) == (4, {"no_reference": 1})
        assert "off 4 references" in capsys.readouterr().out


def saying(text: str) -> Engines:
    """Engines that end every sentence like this, in letters."""

    async def generate(requests: list[GenerationRequest]) -> list[RolloutGroup]:
        groups = []
        for request in requests:
            completion = Completion((), text, 0, 0, "stop")
            groups.append(
                RolloutGroup(request.id, request.prompt, (), 0, (completion,))
            )
        return groups

    @asynccontextmanager
    async def engines(
        config: RunConfig,
    ) -> AsyncIterator[tuple[list[Generate], CountImageTokens]]:
        yield [generate], lambda prompt: 4

    return engines


def test_a_reply_that_differs_by_an_end_mark_alone_is_no_pair(tmp_path: Path) -> None:
    reference = "There is a red circle."
    for mark in ("</s>", "<|im_end|>", "<end_of_turn>\n"):
        answer = read_reply("row", reference + mark, reference, 2)
        assert isinstance(answer, Dropped)
        assert answer.reason == "rewrite_unchanged"
        answer = read_reply("row", f"There is a star.{mark}", reference, 2)
        assert answer == "There is a star."


def test_training_reads_references_without_their_marks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Online BDHS trains on them as chosen answers."""
    marked_prompts(tmp_path)
    config = make_config(tmp_path, mixture__online_bdhs_fraction=1)
    prompts = PromptFile(path=str(tmp_path / "prompts"))
    data = config.data.model_copy(update={"prompts": prompts})
    config = config.model_copy(update={"data": data})
    with caplog.at_level(logging.WARNING, "sightline"):
        loaded = load_prompts(config, ImageStore(tmp_path / "store"), [])
    plain = caption_prompts("train", 4, 0, ImageStore(tmp_path / "pictures"))
    references = [prompt.reference for prompt in loaded]
    assert references == [*(prompt.reference for prompt in plain), ""]
    assert "written out behind references" in caplog.text


def test_sampled_ids_beyond_the_embedding_are_their_rows_drop(imported: Path) -> None:
    plain = by_name(read_pairs(imported))["plain"]
    foreign = PreferencePair(
        "f", plain.prompt, Response("x", (5, 7000)), plain.rejected, "x"
    )
    dropped = Collator(ChatEncoder(SHAPES_POLICY, 512)).encode(foreign)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "token_unknown"
