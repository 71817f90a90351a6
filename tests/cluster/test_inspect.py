"""`inspect`: the page and its JSON on sets of every kind, and the policy's figures against an independent forward."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from cluster import import_data
from cluster.inspect.verdicts import verdicts
from cluster.pages import Span, mark_differences
from common.chat import ChatEncoder
from common.config import SHAPES_POLICY, Model
from common.data.anatomy import anatomy
from common.data.datasets import STATS, write_json, write_pairs
from common.data.images import ImageStore
from common.data.words import words
from common.records import ImageRef, Message, Part, PreferencePair, Prompt, Response
from common.shapes.language import caption, noisy_caption
from common.shapes.prompts import caption_prompts
from common.shapes.scenes import split_scenes
from learner.anatomy_logps import measure_conditions, of_policy, policy_figures, wilson
from learner.batch.collate import Collator, RowBatch
from learner.forward.logps import CompletionLogps
from learner.model.policy import Policy, load_policy


def shapes_pairs(folder: Path, count: int) -> list[PreferencePair]:
    """True captions over captions that also name the usual partner when it is absent."""
    prompts = caption_prompts("test", 5 * count + 10, 0, ImageStore(folder))
    scenes = split_scenes("test", 5 * count + 10, seed=0)
    rng = random.Random(0)
    pairs: list[PreferencePair] = []
    for number, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True)):
        chosen = Response(caption(scene))
        rejected = Response(noisy_caption(scene, rng, 1.0))
        # A scene without a usual pair of objects has nothing to hallucinate.
        if chosen != rejected:
            name = f"pair/{number}"
            pairs.append(PreferencePair(name, prompt, chosen, rejected, "noisy"))
    assert len(pairs) >= count
    return pairs[:count]


def inspect(directory: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """Run the command; the page and the figures that it wrote."""
    out = directory.parent / "out" / "inspect.html"
    line = ["inspect", str(directory), "--out", str(out), *words]
    assert import_data.main(line) == 0
    figures = json.loads(out.with_suffix(".json").read_text())
    return out.read_text(encoding="utf-8"), figures


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, dict[str, Any]]:
    """24 pairs of the shapes world as the shipped policy sees them."""
    folder = tmp_path_factory.mktemp("shapes")
    pairs = shapes_pairs(folder / "images", 24)
    write_pairs(folder / "set", pairs, stats={"dropped": {"tie": 7}})
    words = ["--policy", "shapes", "--batch", "5", "--samples", "3"]
    page, figures = inspect(folder / "set", *words)
    return folder, page, figures


def test_the_shapes_set_looks_as_it_was_made(
    measured: tuple[Path, str, dict[str, Any]],
) -> None:
    """The rejected captions say one object more; the policy believes in it without looking, and sees better."""
    _, page, figures = measured
    assert figures["num_pairs"] == 24
    assert figures["dropped_making"] == {"tie": 7}
    assert figures["length"]["ratio"] < 1
    assert figures["length"]["chosen_longer_frac"] == 0
    assert 0 < figures["distance"]["words"]["mean"] < 0.6
    assert figures["images"]["reuse"] == {"1": 24}
    policy = figures["policy"]
    assert policy["num_pairs"] == 24
    assert policy["dropped"] == {}
    assert len(policy["points"]) == 24
    assert policy["tokens"]["chosen"]["mean"] > figures["length"]["chosen"]["mean"]
    assert -1 < policy["per_token"]["chosen"]["mean"] < 0
    assert policy["grounding"]["num_pairs"] == 24
    views = policy["grounding"]["views"]
    assert set(views) == {"image", "blank", "shuffled", "no_image"}
    seeing, blind = views["image"]["per_token"], views["blank"]["per_token"]
    assert seeing["accuracy"] > blind["accuracy"]
    assert "length gap" in page
    assert page.count("<svg") == 6
    assert page.count("<article>") == 3
    assert page.count("data:image/png;base64,") == 3


def independent_logps(
    pairs: list[PreferencePair], grey: bool
) -> list[tuple[float, float]]:
    """(chosen, rejected) summed log-probs by Hugging Face's own model, processor and softmax, one row at a time."""
    processor = AutoProcessor.from_pretrained(SHAPES_POLICY)
    model = LlavaForConditionalGeneration.from_pretrained(
        SHAPES_POLICY, dtype=torch.float32
    ).eval()
    sums: list[tuple[float, float]] = []
    for pair in pairs:
        picture = Image.open(pair.prompt.images[0].path).convert("RGB")
        if grey:
            picture = Image.new("RGB", picture.size, (127, 127, 127))
        content: list[dict[str, str]] = []
        for part in pair.prompt.messages[0].parts:
            if part.kind == "image":
                content.append({"type": "image"})
            else:
                content.append({"type": "text", "text": part.text})
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(text=text, images=picture, return_tensors="pt")
        chosen = summed_logp(model, processor, inputs, pair.chosen.text)
        rejected = summed_logp(model, processor, inputs, pair.rejected.text)
        sums.append((chosen, rejected))
    return sums


def summed_logp(model: Any, processor: Any, inputs: Any, answer: str) -> float:
    """Log-prob of an answer and the end-of-sequence token after the prompt `inputs`."""
    tokenizer = processor.tokenizer
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    prompt_ids = inputs["input_ids"][0]
    ids = torch.cat([prompt_ids, torch.tensor([*answer_ids, tokenizer.eos_token_id])])
    with torch.no_grad():
        output = model(input_ids=ids[None], pixel_values=inputs["pixel_values"])
    logps = output.logits[0].log_softmax(-1)
    # Position t predicts token t + 1.
    token_logps = logps[:-1].gather(1, ids[1:, None]).squeeze(1)
    return float(token_logps[len(prompt_ids) - 1 :].sum())


def test_logps_and_blind_accuracy_equal_an_independent_path(tmp_path: Path) -> None:
    """Three pairs, the second one turned round, so that right and wrong rankings both occur."""
    pairs = shapes_pairs(tmp_path / "images", 3)
    pairs[1] = replace(pairs[1], chosen=pairs[1].rejected, rejected=pairs[1].chosen)
    collator = Collator(ChatEncoder(SHAPES_POLICY, 512))
    policy = load_policy(Model(), SHAPES_POLICY).eval()
    store = ImageStore(tmp_path / "grey")
    measured = measure_conditions(policy, collator, pairs, store, batch_size=2)
    views = policy_figures(measured)["grounding"]["views"]
    for view, grey in (("image", False), ("blank", True)):
        expected = independent_logps(pairs, grey)
        for pair, both in zip(pairs, expected, strict=True):
            logps = measured.logps[view][pair.id]
            assert logps.both("sum") == pytest.approx(both, abs=2e-3)
        num_right = sum(chosen > rejected for chosen, rejected in expected)
        assert views[view]["sum"]["accuracy"] == pytest.approx(num_right / 3)
    logps_by_view = measured.logps
    assert logps_by_view["image"] != logps_by_view["shuffled"]
    assert logps_by_view["shuffled"] != logps_by_view["blank"]
    assert logps_by_view["blank"] != logps_by_view["no_image"]


def test_what_the_policy_cannot_read_is_counted(tmp_path: Path) -> None:
    good, gone, long, bare, foreign = shapes_pairs(tmp_path / "images", 5)
    Path(gone.prompt.images[0].path).unlink()
    foreign = replace(
        foreign,
        prompt_token_ids=(1, 2),
        chosen=replace(foreign.chosen, token_ids=(999_999,)),
    )
    bare = replace(
        bare, prompt=Prompt("bare", (Message("user", (Part("text", "Hello?"),)),), ())
    )
    long = replace(long, rejected=Response("a red ring " * 400))
    collator = Collator(ChatEncoder(SHAPES_POLICY, 512))
    policy = load_policy(Model(), SHAPES_POLICY).eval()
    store = ImageStore(tmp_path / "grey")
    pairs = [good, gone, long, bare, foreign]
    measured = measure_conditions(policy, collator, pairs, store, 8)
    figures = policy_figures(measured)
    assert figures["dropped"] == {"image_missing": 1, "pair_too_long": 1}
    assert figures["num_pairs"] == 3
    assert figures["num_retokenised"] == 1
    assert set(measured.logps["blank"]) == {good.id, foreign.id}
    assert figures["grounding"]["num_pairs"] == 2
    alone = measure_conditions(policy, collator, [good], store, 8)
    grounding = policy_figures(alone)["grounding"]
    assert grounding["dropped"]["shuffled"] == {"no_other_image": 1}
    assert "shuffled" in grounding["unavailable"]
    assert set(grounding["views"]) == {"image", "blank", "no_image"}


def test_tokens_of_this_tokenizer_stay_and_others_are_read_as_text(
    tmp_path: Path,
) -> None:
    (pair,) = shapes_pairs(tmp_path / "images", 1)
    encoder = ChatEncoder(SHAPES_POLICY, 512)
    ids = encoder.encode_response(pair.chosen.text)[:-1]
    sampled = replace(
        pair, chosen=replace(pair.chosen, token_ids=ids), prompt_token_ids=(1, 2)
    )
    assert of_policy(sampled, encoder) == replace(sampled, prompt_token_ids=None)
    for other in (ids[:-1], (), (10**6,)):
        chosen = replace(pair.chosen, token_ids=other)
        assert of_policy(replace(pair, chosen=chosen), encoder) == pair


def test_a_model_that_cannot_do_without_an_image_or_count_to_the_end(
    tmp_path: Path,
) -> None:
    """The view that fails is named; log-probs that are no number are counted; the other views stand."""
    pairs = shapes_pairs(tmp_path / "images", 4)

    class Picky(Policy):
        def forward(self, batch: RowBatch, adapters: bool = True) -> CompletionLogps:
            if "pixel_values" not in batch.media:
                raise RuntimeError("an image,\nplease")
            logps = super().forward(batch)
            logps.token_logps[0, 0] = torch.nan
            return logps

    policy = Picky(load_policy(Model(), SHAPES_POLICY).net).eval()
    collator = Collator(ChatEncoder(SHAPES_POLICY, 512))
    store = ImageStore(tmp_path / "grey")
    figures = policy_figures(measure_conditions(policy, collator, pairs, store, 4))
    assert figures["dropped"] == {"logps_not_finite": 1}
    assert figures["num_pairs"] == 3
    grounding = figures["grounding"]
    assert grounding["unavailable"] == {
        "no_image": "the model refuses a prompt without an image: an image,"
    }
    assert set(grounding["views"]) == {"image", "blank", "shuffled"}
    assert grounding["num_pairs"] == 2


def test_help_is_light() -> None:
    code = (
        "import sys, cluster.import_data as job\ntry: job.main(['inspect', '--help'])\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'vllm', 'ray', 'pyarrow', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("usage: ") and shown.rstrip().endswith("[]")


def test_wilson_by_hand() -> None:
    """8 of 10: centre (8 + 1.92) / 13.84 = 0.7168, half 1.96 / 13.84 · sqrt(1.6 + 0.96) = 0.2266."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9434), abs=1e-3)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1


class PageReader(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" onload='x' &amp; {{ 7 * 7 }} $\\alpha$"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    (pair,) = shapes_pairs(tmp_path / "images", 1)
    message = Message("user", (Part("image"), Part("text", HOSTILE)))
    hostile = replace(
        pair,
        id=HOSTILE,
        prompt=replace(pair.prompt, id=HOSTILE, messages=(message,)),
        chosen=Response(HOSTILE),
        rejected=Response(HOSTILE.replace("alert", "prompt")),
        source=HOSTILE,
    )
    folder = tmp_path / "<b>set"
    write_pairs(folder, [hostile], stats={"dropped": {HOSTILE: 1}})
    page, figures = inspect(folder)
    assert figures["num_pairs"] == 1
    assert figures["dropped_making"] == {HOSTILE: 1}
    reader = PageReader()
    reader.feed(page)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "b", "iframe", "object"}
    addresses: list[str] = []
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            is_address = name in ("src", "href")
            if is_address and not (value or "").startswith("#"):
                addresses.append(value or "")
    assert len(addresses) == 1
    assert addresses[0].startswith("data:image/png;base64,")
    # Question, chosen, id, source twice, drop reason.
    assert reader.text.count(HOSTILE) == 6


def test_an_empty_set(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", [])
    page, figures = inspect(tmp_path / "set", "--policy", "shapes")
    assert figures["num_pairs"] == 0 and "empty set" in page and "<article>" not in page
    assert figures["policy"]["num_pairs"] == 0


def test_text_only_and_missing_images_and_any_script(tmp_path: Path) -> None:
    """One pair without image, one whose image is gone, one in Chinese whose stats are no histogram."""
    pairs = shapes_pairs(tmp_path / "images", 3)
    text = Prompt("text", (Message("user", (Part("text", "你好吗？ \u202e"),)),), ())
    pairs[0] = replace(
        pairs[0],
        prompt=text,
        chosen=Response("我很好，谢谢。"),
        rejected=Response("我不好，谢谢。"),
    )
    write_pairs(tmp_path / "set", pairs)
    write_json(tmp_path / "set" / STATS, {"dropped": ["no", "histogram"]})
    digest = pairs[1].prompt.images[0].sha256
    (image,) = (tmp_path / "set" / "images").glob(f"*/{digest}.*")
    image.unlink()
    words = ["--policy", "shapes", "--policy-count", "2"]
    page, figures = inspect(tmp_path / "set", *words)
    policy = figures["policy"]
    assert policy["num_asked"] == 2
    assert policy["num_pairs"] == 1
    assert policy["dropped"] == {"image_missing": 1}
    assert policy["grounding"]["views"] == {}
    assert policy["grounding"]["unavailable"]["blank"] == "no pair with an image"
    assert "could not be measured" in page
    assert "not measured: image_missing" in page
    assert figures["images"]["num_missing"] == 1
    assert figures["images"]["num_pairs_without"] == 1
    assert figures["dropped_making"] == {}
    assert figures["num_pairs"] == 3
    assert "image_missing" in page
    assert "no image" in page
    assert '<mark class="chosen">很</mark>' in page
    assert "1 image files are missing" in page


def test_rows_that_are_no_pair_and_a_sample_of_the_set(tmp_path: Path) -> None:
    pairs = shapes_pairs(tmp_path / "images", 12)
    pairs[5] = replace(pairs[5], id=pairs[0].id)
    write_pairs(tmp_path / "set", pairs)
    page, figures = inspect(tmp_path / "set")
    assert figures["dropped_reading"] == {"duplicate_id": 1}
    assert figures["num_pairs"] == 11
    assert "duplicate_id" in page
    assert page.count("<article>") == 11
    page, figures = inspect(tmp_path / "set", "--count", "4", "--samples", "2")
    assert figures["num_rows"] == 12
    assert figures["num_rows_read"] == 4
    assert "evenly spread over the 12 rows" in page
    shown = re.findall(r'class="id">(\S+?)<', page)
    assert shown == [pairs[0].id, pairs[6].id]


def test_wrong_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "set", shapes_pairs(tmp_path / "images", 1))
    good = str(tmp_path / "set")
    out = ("--out", str(tmp_path / "page.html"))
    for line in (
        [str(tmp_path / "nowhere"), *out],
        [good, *out, "--count", "0"],
        [good, "--out", str(tmp_path / "page.json")],
        [good, *out, "--policy", "/nowhere"],
        [good, *out, "--policy", "shapes", "--device", "abacus"],
    ):
        assert import_data.main(["inspect", *line]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


TEXTS = st.lists(
    st.sampled_from(["red", "ring", "a", ", ", "。", "圆", " ", "\n", "<i>"]),
    max_size=25,
).map("".join)


@settings(max_examples=60)
@given(TEXTS, TEXTS)
def test_marking_keeps_the_text_and_the_rest_agrees(chosen: str, rejected: str) -> None:
    chosen_spans, rejected_spans = mark_differences(chosen, rejected)
    assert "".join(span.text for span in chosen_spans) == chosen
    assert "".join(span.text for span in rejected_spans) == rejected
    assert unmarked_words(chosen_spans) == unmarked_words(rejected_spans)


def unmarked_words(spans: tuple[Span, ...]) -> list[str]:
    unmarked: list[str] = []
    for span in spans:
        if not span.kind:
            unmarked += words(span.text)
    return unmarked


def test_marking_repetitive_texts_takes_bounded_time() -> None:
    began = time.monotonic()
    mark_differences("红色" * 1200, "色红圆" * 800)
    mark_differences("a b " * 600, "b a a " * 400)
    assert time.monotonic() - began < 10, "the time grows with the cube of the length"


def ranked(image: float, blind: float, num: int = 100) -> dict[str, Any]:
    def view(accuracy: float) -> dict[str, Any]:
        low, high = wilson(accuracy * num, num)
        return {"sum": {"accuracy": accuracy, "low": low, "high": high}}

    grounding = {"views": {"image": view(image), "blank": view(blind)}}
    side = {"mean": -0.5}
    return {
        "num_pairs": num,
        "per_token": {"chosen": side, "rejected": side},
        "grounding": grounding,
    }


@pytest.mark.parametrize(
    ("image", "blind", "level", "text"),
    [
        (
            0.9,
            0.83,
            "warning",
            "blank image) ranks 83% right by log-prob, 90% with the image: language shortcut",
        ),
        (0.52, 0.5, "warning", "hardly matters"),
        (0.9, 0.5, "good", "needs the image"),
    ],
)
def test_the_grounding_gate(image: float, blind: float, level: str, text: str) -> None:
    side = Response("one two three")
    prompt = Prompt(
        "p", (Message("user", (Part("image"),)),), (ImageRef("a" * 64, __file__),)
    )
    pair = PreferencePair("1", prompt, side, Response("four five six"), "test")
    figures = {
        **anatomy([pair]),
        "num_rows_read": 1,
        "dropped_reading": {},
        "policy": ranked(image, blind),
    }
    levels = [verdict.level for verdict in verdicts(figures) if text in verdict.text]
    assert levels == [level]
    few = {**figures, "policy": ranked(image, blind, 5)}
    texts = [verdict.text for verdict in verdicts(few)]
    assert blind < 0.6 or not any("shortcut" in text for text in texts)
