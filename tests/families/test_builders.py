"""The tiny models are read back by transformers as they were made: no name is unknown, none is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from common.checkpoint.files import tensor_shapes
from tests.families.case import Case, widen
from tests.families.cases import parameters
from tests.families.qwen import QWEN3_5


@pytest.mark.parametrize("case", parameters())
def test_transformers_reads_published_names(case: Case, tmp_path: Path) -> None:
    out = tmp_path / case.name
    case.build(out)
    model, report = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    torch.manual_seed(0)
    expected, _ = case.make()
    widen(expected)
    torch.testing.assert_close(
        model.state_dict(), expected.state_dict(), rtol=0, atol=0
    )


def test_qwen3_5_has_a_module_that_transformers_drops() -> None:
    names = tensor_shapes(QWEN3_5.directory())
    assert sum(name.startswith("mtp.") for name in names) > 10
