"""What a learner exports: a folder that transformers loads, and an adapter that peft loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from common.chat import ChatEncoder
from common.data.images import ImageStore
from learner.batch.collate import Collator
from learner.model.policy import Policy, load_model
from tests.learner.helpers import (
    LORA,
    PROBE,
    TUNINGS,
    make_pairs,
    probed,
    run_config,
    started,
    train,
    written,
)
from tests.probes import one_answer, token_logprobs


def test_the_exported_adapter_is_pefts(
    store: ImageStore,
    tmp_path: Path,
    model_path: Path,
) -> None:
    """Base and adapter loaded by peft alone give the merged export's log-probs."""
    sides = {**LORA, "sides": ["language", "projector", "vision"]}
    trainer = started(run_config(tuning=sides))
    pairs = make_pairs(store, 6)
    train(trainer, [pairs] * 2)
    out = tmp_path / "out"
    trainer.export(out)
    written(trainer)
    prompt = pairs[0].prompt
    base = probed(load_model(model_path, torch.float32), trainer, prompt)
    merged = probed(load_model(out, torch.float32), trainer, prompt)
    # peft wraps the model it is given.
    fresh = load_model(model_path, torch.float32)
    adapted = PeftModel.from_pretrained(fresh, out / "adapter")
    with_adapter = probed(adapted, trainer, prompt)
    torch.testing.assert_close(with_adapter, merged, atol=1e-4, rtol=1e-4)
    assert (with_adapter - base).abs().max() > 1e-3


@TUNINGS
def test_export_loads_with_transformers(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    """With every weight, the processor and the adapter, and with the trained policy's log-probs."""
    trainer = started(run_config(tuning=tuning))
    pairs = make_pairs(store, 6)
    prompt = pairs[0].prompt
    trainer.step(0, pairs)
    out = tmp_path / "out"
    trainer.export(out)
    written(trainer)
    model, report = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert AutoProcessor.from_pretrained(out).chat_template
    assert (out / "generation_config.json").is_file()
    adapter = out / "adapter" / "adapter_model.safetensors"
    assert adapter.exists() == (tuning is not None)
    # The batch by the exported processor, too.
    batch = Collator(ChatEncoder(out, 256)).single(prompt, PROBE)
    with torch.no_grad():
        exported = Policy(model.eval())(batch).token_logps[0]
    trainer.set_probe(one_answer(prompt, PROBE))
    manifest, _ = trainer.publish(1)
    assert manifest is not None
    assert manifest.probe is not None
    np.testing.assert_allclose(
        exported.numpy(), token_logprobs(manifest.probe), atol=1e-4
    )


def test_an_export_replaces_an_older_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    trainer = started(run_config())
    trainer.export(out)
    written(trainer)
    assert not (out / "old").exists()
