"""What the endpoint is asked for a row, and which kind of error."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

from actors.povid.injection import rows_of
from actors.povid.prompt import render_messages
from common.config.povid import KINDS, ErrorKind, PovidConfig
from common.data.images import ImageStore
from common.records import ImageRef, Message, Part, Prompt
from common.shapes.render import blank
from tests.actors.povid.injecting import (
    WRONG,
    always,
    config,
    inject,
    make_prompt,
    reason_of,
)
from tests.chat_server import completion


def test_every_kind_has_its_own_instruction_and_shows_question_and_answer(
    prompt: Prompt,
) -> None:
    question = "What {{ 7 * 7 }} <b>?"
    answer = 'It\'s {% raw %} & "fine"'
    hostile = replace(make_prompt(question), reference=answer)
    texts = set()
    for kind in KINDS:
        (message,) = render_messages(
            hostile,
            kind,
            send_image=False,
        )
        text = message["content"]
        assert question in text
        assert answer in text
        assert "<rewritten>" in text
        # The instruction for models without the image.
        assert "do not see it" in text
        # No leftover of the template language.
        assert "{#" not in text
        assert "\n\n\n" not in text
        texts.add(text)
    assert len(texts) == len(KINDS)


def test_all_turns_are_shown() -> None:
    messages = (
        Message("user", (Part("text", "Is it red?"),)),
        Message("assistant", (Part("text", "Yes."),)),
        Message("user", (Part("text", "And the other?"),)),
    )
    conversation = Prompt("p", messages, (), "Blue.")
    (message,) = render_messages(conversation, "reasoning", send_image=False)
    expected = "user: Is it red?\nassistant: Yes.\nuser: And the other?"
    assert expected in message["content"]


def test_images_travel_as_data_urls_of_the_file(
    prompt: Prompt,
    image: ImageRef,
) -> None:
    (message,) = render_messages(prompt, "entity", send_image=True)
    shown, text = message["content"]
    kind, data = shown["image_url"]["url"].split(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(data) == Path(image.path).read_bytes()
    assert "attached image" in text["text"]
    (message,) = render_messages(prompt, "entity", send_image=False)
    assert isinstance(message["content"], str)


def test_an_image_that_is_gone_drops_its_row_unasked(
    prompt: Prompt,
    tmp_path: Path,
    cache: Path,
) -> None:
    gone = ImageStore(tmp_path).add(blank())
    # After it was stored, as when a data set has moved.
    Path(gone.path).unlink()
    with always(completion(WRONG)) as server:
        with_image = config(server.url, send_image=True)
        injection = inject(with_image, cache, replace(prompt, images=(gone,)))
        assert reason_of(injection) == "image_missing"
        assert injection.asked == "no"
        without_image = replace(prompt, images=())
        injection = inject(config(server.url), cache, without_image)
        assert reason_of(injection) == "no_image"
        assert not server.asked


def drawn_kinds(
    seed: int,
    question: str,
    kinds: tuple[ErrorKind, ...] = KINDS,
) -> list[str]:
    """Kinds of 60 prompts with the same question."""
    settings = PovidConfig(seed=seed, kinds=kinds)
    prompt = make_prompt(question)
    drawn: list[str] = []
    for number in range(60):
        rows = rows_of(replace(prompt, id=f"p{number}"), settings)
        drawn.extend(row.kind for row in rows)
    return drawn


def test_kinds_follow_request_seed_and_id(prompt: Prompt) -> None:
    # The wording decides what is a caption.
    captions = drawn_kinds(0, "What do you see in the image?")
    assert set(captions) == {"entity", "attribute", "relation"}
    assert captions == drawn_kinds(0, "Describe the image in detail.")
    assert captions != drawn_kinds(1, "Describe the image in detail.")
    question = "Why is the man wearing a helmet?"
    assert set(drawn_kinds(0, question)) == {"reasoning"}
    assert set(drawn_kinds(0, question, ("entity",))) == {"entity"}
    rows = rows_of(prompt, PovidConfig(every_kind=True))
    assert [row.id for row in rows] == ["p/entity", "p/attribute", "p/relation"]


def test_the_last_turn_decides_what_is_a_caption(prompt: Prompt) -> None:
    """A caption in an earlier turn makes the answer to a later question no caption."""
    said = Message("assistant", (Part("text", "A cup."),))
    asked = Message("user", (Part("text", "What colour is the cup?"),))
    longer = replace(prompt, messages=(*prompt.messages, said, asked))
    (row,) = rows_of(longer, PovidConfig())
    assert row.kind == "reasoning"
    (row,) = rows_of(make_prompt("What is on the table?"), PovidConfig())
    assert row.kind != "reasoning"
