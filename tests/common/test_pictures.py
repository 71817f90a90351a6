"""Limits of pictures: one size for engine, learner and judges; what is too large is made smaller or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.chat import ChatEncoder, check_model, encoder_of
from common.chat.facts import facts_of
from common.chat.pictures import resized
from common.chat.proof import transformers_ids
from common.config import Model, RunConfig
from common.config.model import Pictures
from common.config.overrides import load_config
from common.data.images import ImageStore
from common.errors import Refused, UserError
from common.records import Message, Part, Prompt
from tests.tiny_families import tiny_llava_next, tiny_qwen, tiny_qwen3
from tests.tiny_models import picture, tiny_llava

ONLINE = ("--mixture.online_fraction", "1")


def prompt_of(store: ImageStore, *sizes: tuple[int, int]) -> Prompt:
    images = []
    for number, size in enumerate(sizes):
        images.append(store.add(picture(number, 200).resize(size)))
    parts = (Part("image"),) * len(sizes) + (Part("text", "Describe the image."),)
    return Prompt("p", (Message("user", parts),), tuple(images))


def test_sizes_by_hand() -> None:
    """400 x 300 within 30,000 pixels is half as wide and high; 20 x 10 of at least 800 is twice."""
    assert resized((400, 300), None, 30_000) == (200, 150)
    assert resized((20, 10), 800, None) == (40, 20)
    assert resized((400, 300), 100, 120_000) == (400, 300)
    # A strip of one pixel can give way on its long side alone.
    assert resized((1000, 1), None, 10) == (10, 1)


@given(
    width=st.integers(2, 4000),
    height=st.integers(2, 4000),
    low=st.integers(4, 10_000),
    more=st.integers(0, 1_000_000),
)
def test_a_size_is_within_its_limits_and_keeps_its_shape(
    width: int, height: int, low: int, more: int
) -> None:
    high = low + more
    new_width, new_height = resized((width, height), None, high)
    assert 1 <= new_width * new_height <= high
    # One pixel of rounding on either side.
    if min(new_width, new_height) > 1:
        assert abs(new_width - new_height * width / height) <= 1 + width / height
    enlarged = resized((width, height), low, None)
    assert enlarged[0] * enlarged[1] >= min(low, width * height)
    assert resized(enlarged, low, None) == enlarged


@pytest.mark.parametrize("build", [tiny_qwen, tiny_qwen3])
def test_a_processor_with_limits_is_given_them(build: Any, store: ImageStore) -> None:
    """Qwen's own rule: sides in whole tokens, at most so many pixels, shape kept as near as that comes."""
    large, small = prompt_of(store, (400, 300)), prompt_of(store, (30, 40))
    folder = build()
    whole = ChatEncoder(folder, 512)
    side = whole.config.vision_config.patch_size * 2
    limited = ChatEncoder(folder, 512, pictures=Pictures(max_pixels=20 * side**2))
    assert limited.encode_prompt(large).num_image_tokens <= 20
    assert whole.encode_prompt(large).num_image_tokens > 20
    unchanged = limited.encode_prompt(small)
    assert unchanged.token_ids == whole.encode_prompt(small).token_ids
    # The file stays as it is: the processor does the work.
    assert limited.load_images(large)[0].size == (400, 300)
    least = ChatEncoder(folder, 512, pictures=Pictures(min_pixels=30 * side**2))
    assert least.encode_prompt(small).num_image_tokens >= 30


@pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next])
def test_for_other_processors_the_picture_is_resized(
    build: Any, store: ImageStore
) -> None:
    """The same inputs as for a file of that size."""
    encoder = ChatEncoder(build(), 512, pictures=Pictures(max_pixels=7500))
    large = prompt_of(store, (400, 300))
    (fitted,) = encoder.load_images(large)
    assert fitted.size == (100, 75)
    plain = ChatEncoder(build(), 512)
    ref = store.add(fitted)
    expected = plain.encode_prompt(Prompt("p", large.messages, (ref,)))
    got = encoder.encode_prompt(large)
    assert got.token_ids == expected.token_ids
    assert got.model_inputs["pixel_values"].equal(expected.model_inputs["pixel_values"])


@pytest.mark.parametrize("build", [tiny_llava_next, tiny_qwen, tiny_qwen3])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_tokens_are_transformers_own_with_limits_and_several_pictures(
    build: Any, num: int, store: ImageStore
) -> None:
    encoder = ChatEncoder(build(), 512, pictures=Pictures(max_pixels=15_000))
    prompt = prompt_of(store, *[(400, 300), (64, 64), (90, 40)][:num])
    pictures = encoder.load_images(prompt)
    theirs = transformers_ids(encoder, list(prompt.messages), pictures)
    assert encoder.encode_prompt(prompt).token_ids == theirs


def test_a_picture_that_is_too_large_is_named_with_the_key(store: ImageStore) -> None:
    encoder = ChatEncoder(tiny_qwen(), 40)
    with pytest.raises(Refused, match="54 are those of its 1 images; lower ") as caught:
        encoder.encode_prompt(prompt_of(store, (300, 200)))
    assert caught.value.reason == "image_too_long"
    assert "lower model.max_pixels, or raise model.max_length" in str(caught.value)
    limited = ChatEncoder(tiny_qwen(), 40, pictures=Pictures(max_pixels=10_000))
    assert limited.encode_prompt(prompt_of(store, (300, 200))).num_image_tokens <= 12
    # A long text is still what it was.
    text = Prompt("p", (Message("user", (Part("text", "circle " * 60),)),), ())
    with pytest.raises(Refused) as caught:
        encoder.encode_prompt(text)
    assert caught.value.reason == "prompt_too_long"
    with pytest.raises(Refused, match=r"of model.mm_proc|in model.mm_proc"):
        ChatEncoder(tiny_llava(), 64).encode_prompt(prompt_of(store, (64, 64)))


def test_arguments_reach_the_processor(store: ImageStore) -> None:
    prompt = prompt_of(store, (300, 200))
    size = {"shortest_edge": 784, "longest_edge": 12_544}
    counts = set()
    for table in ({"size": size}, {"images_kwargs": {"size": size}}):
        settings = Pictures(mm_processor_kwargs=table)
        encoder = ChatEncoder(tiny_qwen(), 512, pictures=settings)
        counts.add(encoder.encode_prompt(prompt).num_image_tokens)
        # transformers takes entries out of what it is given.
        assert encoder.picture_sizes.arguments == {"size": size}
    assert counts == {12}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nope": 1}, "expected arguments of Qwen2VLImageProcessor ("),
        ({"image_mean": [0, 0, 0]}, "got image_mean; correct or remove it"),
        ({"size": {"longest_edge": 9}}, "expected no size beside min_pixels and"),
        ({"images_kwargs": 3}, "images_kwargs: expected a table of arguments, got 3"),
    ],
)
def test_arguments_that_mean_nothing(settings: dict[str, Any], said: str) -> None:
    pictures = Pictures(max_pixels=9000, mm_processor_kwargs=settings)
    with pytest.raises(UserError, match=r"^model.mm_processor_kwargs[:.]") as caught:
        ChatEncoder(tiny_qwen(), 512, pictures=pictures)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "table", [{"size": {"longest_edge": 9000}}, {"size": 7}, {"patch_size": "wide"}]
)
def test_values_that_the_processor_does_not_take(table: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="correct mm_processor_kwargs, min") as caught:
        ChatEncoder(tiny_qwen(), 512, pictures=Pictures(mm_processor_kwargs=table))
    assert "\n" not in str(caught.value)


def test_a_length_without_room_for_a_picture(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^model.max_length: expected more than"
    ) as got:
        check_model(Model(path=str(tiny_llava()), max_length=64))
    assert "64 of them the picture's" in str(got.value)
    assert "set model.max_length = " in str(got.value)


def test_a_warning_names_a_limit_that_fits(store: ImageStore) -> None:
    """A picture of the named size leaves room; without the limit the processor would make too many tokens."""
    model = Model(path=str(tiny_qwen()), max_length=48)
    (warning,) = check_model(model).warnings
    words = warning.partition("set model.max_pixels = ")[2]
    most = int(words.split()[0])
    with pytest.raises(Refused):
        encoder_of(model).encode_prompt(prompt_of(store, (300, 200)))
    limited = model.model_copy(update={"max_pixels": most})
    encoder = check_model(limited)
    assert encoder.warnings == []
    for size in ((300, 200), (200, 200), (1000, 90)):
        encoder.encode_prompt(prompt_of(store, size))


def test_the_doctor_counts_tokens() -> None:
    settings = Pictures(max_pixels=50_000)
    facts = facts_of(ChatEncoder(tiny_qwen(), 512, pictures=settings))
    assert facts["pictures"] == (
        "4 tokens of 64 x 64 pixels, 49 tokens of 1024 x 1024 pixels"
    )


def test_keys_reach_the_table_from_file_and_command_line(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text(
        "[model]\nmax_pixels = 90000\n[model.mm_processor_kwargs.size]\nshortest_edge = 7\n"
    )
    words = [
        *ONLINE,
        "--model.mm_processor_kwargs.size.longest_edge=448",
        "--model.mm_processor_kwargs.do_pad=false",
    ]
    model = load_config(preset, words).model
    assert model.mm_processor_kwargs == {
        "size": {"shortest_edge": 7, "longest_edge": 448},
        "do_pad": False,
    }
    assert model.max_pixels == 90_000
    # Sections are frozen and compared, tables in them as well.
    again = load_config(preset, words).model
    assert (hash(model), model) == (hash(again), again)
    table = '{"size": {"longest_edge": 4}}'
    whole = load_config(None, [*ONLINE, "--model.mm_processor_kwargs", table])
    assert whole.model.mm_processor_kwargs["size"] == {"longest_edge": 4}
    assert RunConfig.model_validate_json(whole.model_dump_json()) == whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.mm_processor_kwargs=3"], "model.mm_processor_kwargs: "),
        (["--model.max_pixels=3"], "model.max_pixels: "),
        (
            ["--model.max_pixels=300", "--model.min_pixels=400"],
            "expected min_pixels of at most max_pixels, got 400 and 300",
        ),
        (["--model.mm_processor_kwargs.x=1979-05-27"], "expected texts, finite"),
        (["--model.max_images=0"], "model.max_images: "),
    ],
)
def test_values_that_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [*ONLINE, *words])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_is_not_touched_without_limits() -> None:
    image = Image.new("RGB", (3000, 2000))
    for build in (tiny_llava, tiny_qwen):
        assert ChatEncoder(build(), 512).picture_sizes.fitted(image) is image
