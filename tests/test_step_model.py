"""The work that the step benchmark divides by."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.step_model import StepSize, must_flops

TINY = StepSize(
    hidden=2, mlp=3, layers=1, vocabulary=5, vision_hidden=1, vision_mlp=1, vision_layers=2, side=2, patch=1,
    prompt_words=1, completion_tokens=2,
)  # fmt: skip
TOWER = 184
"""5 patches (class token included), one layer 2·5·(4 + 2) + 4·5²·1 = 160; embedding of 4 patches 2·4·3·1 = 24."""


def test_work_by_hand() -> None:
    """4 image tokens + 1 word, two completions of 2, of which 1 token each is read: 7 tokens, 3 of them predict.

    seen      by the prompt's last token 5, by each completion's first 6                17
    layer     keys and values 2·7·2·2² = 112, the rest 2·3·(2·2² + 3·2·3) = 156, attention 4·2·17 = 136
    head      2·3·2·5 = 60, so 328 linear and 136 of attention
    projector first 2·4·1·2 = 16, second 2·4·2² = 32
    LoRA      no gradient of the inputs of queries (2·3·2² = 24), keys and values (112)
    """
    assert must_flops(TINY, 1, cached=False) == TOWER + 4 * 464 + 3 * 16 + 4 * 32
    assert must_flops(TINY, 3, cached=True) == 3 * (TOWER + 3 * 464 + 2 * 16 + 3 * 32)
    assert (
        must_flops(TINY, 1, cached=False, lora=True)
        == TOWER + 3 * 328 + 4 * 136 - 24 - 112 + 16 + 32
    )


def test_layers_before_the_last_by_hand() -> None:
    """7 tokens see 1+2+3+4+5 and 6 each: 2·7·(4·2² + 3·2·3) + 4·2·27 = 476 + 216 = 692."""
    two = replace(TINY, layers=2)
    assert (
        must_flops(two, 1, cached=False) - must_flops(TINY, 1, cached=False) == 4 * 692
    )
    lora = must_flops(two, 1, cached=False, lora=True) - must_flops(
        TINY, 1, cached=False, lora=True
    )
    assert lora == 3 * 476 + 4 * 216 - 2 * (7 - 3) * 2**2, (
        "the first layer now asks with all tokens"
    )


def test_pairs_of_one_prompt_share_it() -> None:
    """Two pairs of one prompt: 9 tokens, 5 predict, 5 + 4·6 seen: 2·9·8 + 2·5·26 + 4·2·29 = 636, head 100."""
    assert (
        must_flops(TINY, 2, cached=True, per_prompt=2)
        == TOWER + 3 * 736 + 2 * 16 + 3 * 32
    )
