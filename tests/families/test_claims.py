"""What docs/models.md says of each family is what the code decides by its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from common.chat import ChatEncoder
from common.chat.families import against_cpu_engines, against_shortened, check_bdhs
from common.config.bdhs import BdhsConfig
from common.errors import UserError
from tests.families.case import Case
from tests.families.cases import parameters
from tests.families.internvl import INTERNVL
from tests.families.qwen import QWEN3_5
from tests.families.table import table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "paste what `python -m tests.families.table` prints"
    )


@pytest.mark.parametrize("case", parameters())
def test_claims(case: Case) -> None:
    config = AutoConfig.from_pretrained(case.directory())
    assert (against_shortened(config) is None) == case.is_shortened
    runs = against_cpu_engines(config, case.engine_dtype) is None
    assert runs == case.runs_on_cpu


def test_linear_attention_on_a_cpu_is_told_what_to_set() -> None:
    config = AutoConfig.from_pretrained(QWEN3_5.directory())
    reason = against_cpu_engines(config, "float32") or ""
    assert reason.endswith("set model.dtype = bfloat16")


def test_bdhs_names_the_families_that_can() -> None:
    encoder = ChatEncoder(INTERNVL.directory(), max_length=256)
    with pytest.raises(UserError) as refusal:
        check_bdhs(encoder, BdhsConfig())
    assert str(refusal.value) == (
        "rollout.bdhs.variant = attention: expected a family whose image tokens can be left out, got internvl; image "
        "tokens can be left out of llava, llava_next, qwen2_5_vl; set rollout.bdhs.variant = noise"
    )
    check_bdhs(encoder, BdhsConfig(variant="noise"))
