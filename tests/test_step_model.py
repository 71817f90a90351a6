"""The work that the step benchmark divides by."""

from __future__ import annotations

from benchmarks.step_model import StepSize, must_flops


def test_work_by_hand() -> None:
    """4 image tokens + 1 word, two completions of 2: 9 tokens, head at 4 positions.

    visible   prompt 1+2+3+4+5, each completion 6+7                                   41
    layer     2·9·(4·2² + 3·2·3) + 4·41·2 = 612 + 328                                940
    head      2·4·2·5                                                                 80
    projector 2·4·(1·2 + 2²)                                                          48
    tower     patches 2·5·3·1; its one needed layer 2·5·(4 + 2) + 4·5²·1 = 160       190
    """
    size = StepSize(
        hidden=2, mlp=3, layers=1, vocabulary=5, vision_hidden=1, vision_mlp=1, vision_layers=2, side=2, patch=1,
        prompt_words=1, completion_tokens=2,
    )  # fmt: skip
    language = 940 + 80 + 48
    assert must_flops(size, 1, cached=False) == 190 + 4 * language
    assert must_flops(size, 3, cached=True) == 3 * (190 + 3 * language)
    assert must_flops(size, 1, cached=False, lora=True) == 190 + 3 * language
