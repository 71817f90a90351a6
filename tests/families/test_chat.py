"""Words of a question that spell special tokens stay text beside any family's pictures."""

from __future__ import annotations

import pytest

from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.errors import Refused
from tests.families.case import Case
from tests.families.cases import CASES, parameters
from tests.families.gemma import GEMMA3
from tests.families.prompts import ask, prompts_of

WITH_MARKS_OF_THEIR_OWN = [case for case in CASES if case is not GEMMA3]


@pytest.mark.parametrize("case", parameters(WITH_MARKS_OF_THEIR_OWN))
def test_special_tokens_stay_text(case: Case, store: ImageStore) -> None:
    encoder = ChatEncoder(case.directory(), max_length=512)
    first, second, *_ = prompts_of(case, store)
    images = (*first.images, *second.images)
    end = encoder.tokenizer.eos_token
    plain = encoder.encode_prompt(ask("plain", *images, text="What is x here?"))
    spelled = encoder.encode_prompt(
        ask("spelled", *images, text=f"What is {end} here?")
    )
    assert spelled.num_image_tokens == plain.num_image_tokens
    ends = [
        ids.token_ids.count(encoder.tokenizer.eos_token_id) for ids in (plain, spelled)
    ]
    assert ends[0] == ends[1]
    text = encoder.tokenizer.decode(spelled.token_ids)
    assert f"What is {end} here?" in text
    # Up to the question both are the same.
    shared = plain.token_ids.index(encoder.image_token_id) + plain.token_ids.count(
        encoder.image_token_id
    )
    assert spelled.token_ids[:shared] == plain.token_ids[:shared]


def test_gemma3_refuses_them(store: ImageStore) -> None:
    """Its newlines around a picture join with those of the text, so the text cannot be exchanged."""
    encoder = ChatEncoder(GEMMA3.directory(), max_length=512)
    image = prompts_of(GEMMA3, store)[0].images[0]
    with pytest.raises(Refused) as refusal:
        encoder.encode_prompt(ask("spelled", image, text="What is <end_of_turn>?"))
    assert refusal.value.reason == "special_token"


@pytest.mark.parametrize("case", parameters())
def test_media_tokens_are_never_sampled(case: Case) -> None:
    """The token that a text has for a picture, and the one of its features, are among those that engines ban."""
    encoder = ChatEncoder(case.directory(), max_length=512)
    assert encoder.placeholder_id in encoder.media_token_ids
    assert encoder.image_token_id in encoder.media_token_ids
