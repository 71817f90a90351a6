"""The learner on the plain torch engine; `test_engines` runs the same class on DeepSpeed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from transformers import AutoModelForImageTextToText, AutoProcessor

import learner.forward.onednn
import learner.losses
import learner.update
from common.chat import ChatEncoder
from common.config import Learner as LearnerConfig
from common.config import Model, Run, RunConfig
from common.config.losses import Sigmoid
from common.data.images import ImageStore
from common.errors import UserError
from common.records import PreferencePair, Prompt, Response
from common.weights import checksum
from learner.batch.collate import Collator
from learner.batch.plan import MicroSize, plan_batch
from learner.forward.tree import tree_batch
from learner.learner import Learner
from learner.losses.objective import Objective
from learner.losses.pair_logps import PairLogps, pair_logps
from learner.model.fast_path import FastPath
from learner.model.policy import Policy, load_model, load_policy
from learner.update import accumulate
from tests.learner.helpers import (
    LORA,
    TUNINGS,
    assert_same_arrays,
    diverged_policies,
    gradients,
    identical,
    losses_of,
    make_pairs,
    model_of_push,
    models_of,
    run_config,
    spoil_losses,
    started,
    train,
    weights_of,
    without_image,
    written,
)
from tests.probes import one_answer, token_logprobs
from tests.tiny_models import TinyLlava, tiny_llava

PROBE = (5, 6, 7)
"""Token ids of a response whose log-probs are compared."""


def encoder_of(trainer: Learner) -> ChatEncoder:
    return trainer.models.collator.encoder


def change_norm(trainer: Learner) -> float:
    """How far the weights are from the start."""
    manifest, _ = trainer.publish(1)
    assert manifest is not None
    return manifest.change_norm


def with_model(config: RunConfig, **settings: Any) -> RunConfig:
    """The run with other settings of its model."""
    model = config.model.model_copy(update=settings)
    return config.model_copy(update={"model": model})


@torch.no_grad()
def probed(model: Any, trainer: Learner, prompt: Prompt) -> torch.Tensor:
    """Log-probs of the probe behind a prompt under a Hugging Face model, [tokens]."""
    batch = trainer.models.collator.single(prompt, PROBE)
    return Policy(model.eval())(batch).token_logps[0]


def assert_trains_alike(
    actual: dict[str, float],
    expected: dict[str, float],
) -> None:
    """Of the metrics of a step on the same pairs."""
    for name in ("loss", "grad_norm", "rewards/margins", "tokens"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


def test_start_counts_parameters() -> None:
    facts = Learner(run_config()).start()
    assert facts["num_params"] > facts["num_trainable_params"] > 0
    assert facts["device"] == "cpu"
    assert facts["world_size"] == 1
    lora = Learner(run_config(tuning=LORA)).start()
    assert lora["num_trainable_params"] < facts["num_trainable_params"] / 10


@TUNINGS
def test_training_raises_the_margin(store: ImageStore, tuning: dict | None) -> None:
    trainer = started(run_config(tuning=tuning))
    metrics = train(trainer, [make_pairs(store, 6)] * 5)
    first, last = metrics[0], metrics[-1]
    # Policy = reference.
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < first["loss"]
    assert last["rewards/accuracies"] == 1.0


def test_what_a_step_says(store: ImageStore) -> None:
    """6 pairs, of two sources in turn."""
    trainer = started(run_config())
    pairs = make_pairs(store, 6)
    trainer.step(0, pairs)
    result, _ = trainer.step(1, pairs)
    assert result.step == 1
    assert result.pair_ids == tuple(pair.id for pair in pairs)
    metrics = result.metrics
    assert metrics["pairs/online"] == 3
    assert metrics["pairs/bdhs"] == 3
    assert metrics["pairs/trained"] == 6
    by_source = [metrics["rewards/margins/online"], metrics["rewards/margins/bdhs"]]
    assert np.mean(by_source) == pytest.approx(metrics["rewards/margins"])
    others = {"lr", "grad_norm", "rewards/chosen", "logps/rejected"}
    assert others <= metrics.keys()
    assert 0 < metrics["time/input_s"] < metrics["time/step_s"]
    num_tokens = 0
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            num_tokens += len(encoder_of(trainer).encode_response(side.text))
    assert metrics["tokens"] == num_tokens


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_add_up_to_one_big_batch(
    model_path: Path,
    store: ImageStore,
    micro_batch: int,
) -> None:
    """Float64, so that equal means equal: 7 pairs in micro-batches of 1, 3 or 4 against one of 8."""
    policies = diverged_policies(model_path, 0.05)
    policy, _ = policies
    collator = Collator(ChatEncoder(model_path, 256))
    models = models_of(policies, collator)
    pairs = make_pairs(store, 7)
    config = LearnerConfig(loss=Sigmoid(nll_weight=0.1))

    def gradients_of(size: int) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        plan = plan_batch(pairs, collator, MicroSize(size), 0, 1)
        accumulate(models, plan, Objective.of(config, pairs))
        return gradients(policy)

    expected = gradients_of(8)
    torch.testing.assert_close(
        gradients_of(micro_batch), expected, atol=1e-12, rtol=1e-9
    )


def test_refused_pairs_come_back_and_do_not_count(store: ImageStore) -> None:
    mixed = started(run_config())
    clean = started(run_config())
    good = make_pairs(store, 4)
    same = replace(identical(good[0]), id="same")
    with_image_token = Response("", (5, encoder_of(mixed).image_token_id))
    media = replace(good[0], id="media", chosen=with_image_token)
    result, dropped = mixed.step(0, [same, *good, media])
    assert [(drop.id, drop.reason) for drop in dropped] == [
        ("same", "pair_identical"),
        ("media", "response_media"),
    ]
    assert result.pair_ids == tuple(pair.id for pair in good)
    assert result.metrics["pairs/trained"] == 4
    clean.step(0, good)
    assert_same_arrays(weights_of(mixed), weights_of(clean))


def test_a_batch_without_a_usable_pair_changes_nothing(store: ImageStore) -> None:
    trainer = started(run_config())
    (pair,) = make_pairs(store, 1)
    result, dropped = trainer.step(0, [identical(pair)])
    assert result.pair_ids == ()
    assert result.metrics["steps_skipped"] == 1
    assert [drop.reason for drop in dropped] == ["pair_identical"]
    assert change_norm(trainer) == 0


def test_a_loss_that_is_not_finite_skips_the_step(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = started(run_config())
    pairs = make_pairs(store, 6)
    spoil_losses(monkeypatch, math.nan)
    result, dropped = trainer.step(0, pairs)
    assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert result.pair_ids == ()
    assert result.metrics["steps_skipped"] == 1
    assert change_norm(trainer) == 0
    # The next step trains again.
    monkeypatch.undo()
    result, dropped = trainer.step(1, pairs)
    assert len(result.pair_ids) == 6
    assert dropped == []
    assert result.metrics["steps_skipped"] == 1


@pytest.mark.parametrize(
    ("kind", "bad"), [("hinge", math.nan), ("hinge", -math.inf), ("sigmoid", -math.inf)]
)
def test_a_loss_that_is_not_finite_skips_the_step_though_its_gradient_is(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    bad: float,
) -> None:
    """A bad value from the reference alone: the policy's gradient is 0 or -β, as of any other pair."""
    trainer = started(run_config(loss={"kind": kind}))

    def broken(*args: Any) -> PairLogps:
        logps = pair_logps(*args)
        return replace(logps, ref_rejected=logps.ref_rejected + bad)

    monkeypatch.setattr(learner.update, "pair_logps", broken)
    result, dropped = trainer.step(0, make_pairs(store, 6))
    assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert result.pair_ids == ()
    assert change_norm(trainer) == 0


def test_a_run_that_stays_not_finite_stops_and_leaves_its_batch(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Limit 2: bad, good, bad, bad stops; the good step between starts the count again."""
    config = run_config(max_skipped_steps=2)
    trainer = started(config.model_copy(update={"run": Run(dir=tmp_path)}))
    pairs = make_pairs(store, 3)
    for step, factor in enumerate((math.inf, 1, math.inf)):
        spoil_losses(monkeypatch, factor)
        trainer.step(step, pairs)
        monkeypatch.undo()
    spoil_losses(monkeypatch, math.inf)
    expected = r"got 2 steps in a row .*skipped_step_3\.json"
    with pytest.raises(UserError, match=expected) as caught:
        trainer.step(3, pairs)
    assert "\n" not in str(caught.value)
    saved = (tmp_path / "skipped_step_3.json").read_bytes()
    assert TypeAdapter(list[PreferencePair]).validate_json(saved) == pairs


def test_a_run_without_a_usable_pair_stops_and_says_why(store: ImageStore) -> None:
    """Limit 2: empty, good, empty, empty stops; the message counts what was refused since the good step."""
    trainer = started(run_config(max_skipped_steps=2))
    pair, *good = make_pairs(store, 3)
    same = identical(pair)
    empty = replace(pair, chosen=Response("", ()))
    train(trainer, [[same], good, [same, empty]])
    reasons = r"\{'pair_identical': 2, 'response_empty': 1\}"
    expected = f"got 2 batches in a row without one .*refused {reasons}"
    with pytest.raises(UserError, match=expected) as caught:
        trainer.step(3, [same])
    assert "\n" not in str(caught.value)


def test_a_token_limit_cuts_micro_batches_and_changes_nothing(
    store: ImageStore,
) -> None:
    pairs = make_pairs(store, 6)
    plain = started(run_config())
    packed = started(run_config(fast={"pack_tokens": 200}))
    sizes = [len(batch.pairs) for batch in packed.plan(pairs).micro_batches]
    assert len(sizes) > 2
    assert sum(sizes) == 6
    (expected,) = train(plain, [pairs])
    (actual,) = train(packed, [pairs])
    assert_trains_alike(actual, expected)


def test_pairs_of_one_prompt_fill_a_forward_with_it_once(store: ImageStore) -> None:
    pairs = make_pairs(store, 6)
    same_prompt = [replace(pair, prompt=pairs[0].prompt) for pair in pairs]
    plain = started(run_config())
    packed = started(run_config(fast={"pack_tokens": 200}))
    batches = packed.plan(same_prompt).micro_batches
    assert len(batches) < len(packed.plan(pairs).micro_batches)
    for batch in batches:
        assert tree_batch(batch.pairs).num_tokens <= 200
    (expected,) = train(plain, [same_prompt])
    (actual,) = train(packed, [same_prompt])
    assert_trains_alike(actual, expected)


def test_rows_without_trees_count_their_prompt_each_time(store: ImageStore) -> None:
    pairs = make_pairs(store, 6)
    same_prompt = [replace(pair, prompt=pairs[0].prompt) for pair in pairs]
    trees = started(run_config(fast={"pack_tokens": 200}))
    rows = started(run_config(fast={"pack_tokens": 200, "share_prompt": False}))
    num_batches = len(trees.plan(pairs).micro_batches)
    assert len(rows.plan(same_prompt).micro_batches) == num_batches


@TUNINGS
def test_every_switch_off_trains_the_same(
    store: ImageStore,
    tuning: dict | None,
) -> None:
    names = ("share_prompt", "share_vision", "fused_logps", "fused_layers", "onednn")
    off = dict.fromkeys(names, False) | {"reference_cache": "off"}
    batches = [make_pairs(store, 6, first) for first in (0, 6, 12)]
    fast = train(started(run_config(tuning=tuning)), batches)
    slow = train(started(run_config(tuning=tuning, fast=off)), batches)
    for ours, theirs in zip(fast, slow, strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name


def fallbacks_of(config: RunConfig) -> dict[str, str]:
    fallbacks: dict[str, str] = Learner(config).start()["fallbacks"]
    return fallbacks


def test_what_cannot_be_fast_is_said() -> None:
    """A trained tower has nothing to share; without shared prompts, the reference cache has no keys."""
    assert fallbacks_of(run_config()) == {}
    thawed = with_model(run_config(), freeze_vision=False)
    assert set(fallbacks_of(thawed)) == {"share_vision"}
    rows = run_config(fast={"share_prompt": False, "fused_layers": True})
    assert fallbacks_of(rows) == {
        "share_vision": "needs share_prompt",
        "fused_layers": "needs share_prompt",
        "reference_cache": "needs share_prompt",
    }


def test_what_zero_3_cannot_have_is_said(model_path: Path) -> None:
    """The reference cache is there on one rank."""
    policy = load_policy(Model(), model_path)
    on_one = run_config("deepspeed", zero_stage=3, num_ranks=1)
    on_two = run_config("deepspeed", zero_stage=3, num_ranks=2)
    without = {"share_vision", "fused_logps"}
    assert set(FastPath.of(on_one, policy).fallbacks) == without
    assert set(FastPath.of(on_two, policy).fallbacks) == {*without, "reference_cache"}


def test_the_slower_of_two_libraries_is_no_fallback(
    model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner.forward.onednn, "mkl_is_slow", lambda: False)
    path = FastPath.of(run_config(), load_policy(Model(), model_path))
    assert (path.onednn, path.fallbacks) == (False, {})


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


def trained(
    store: ImageStore,
    tuning: dict | None,
) -> tuple[Learner, Prompt]:
    """A learner with three steps and a probe, and the probe's prompt."""
    trainer = started(run_config(tuning=tuning))
    pairs = make_pairs(store, 6)
    prompt = pairs[0].prompt
    trainer.set_probe(one_answer(prompt, PROBE))
    assert change_norm(trainer) == 0
    train(trainer, [pairs] * 3)
    return trainer, prompt


@TUNINGS
def test_the_manifest_describes_what_is_sent(
    store: ImageStore,
    model_path: Path,
    tuning: dict | None,
) -> None:
    """All tensors of the plain model: LoRA comes merged."""
    trainer, _ = trained(store, tuning)
    manifest, arrays = trainer.publish(1)
    assert manifest is not None
    assert manifest.version == 1
    assert manifest.change_norm > 1e-2
    assert manifest.checksum == checksum(arrays)
    num_tensors = len(load_model(model_path, torch.float32).state_dict())
    assert manifest.num_tensors == len(arrays) == num_tensors
    assert manifest.num_bytes == sum(array.nbytes for array in arrays.values())


@TUNINGS
def test_what_is_sent_is_the_trained_policy(
    store: ImageStore,
    model_path: Path,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    """Its log-probs, not the base's, when a fresh model takes the arrays over; the probe says the same."""
    trainer, prompt = trained(store, tuning)
    manifest, arrays = trainer.publish(1)
    assert manifest is not None
    assert manifest.probe is not None
    start = load_model(model_path, torch.float32)
    base = probed(start, trainer, prompt)
    model = model_of_push(arrays, model_path, tmp_path / "pushed")
    sent = probed(model, trainer, prompt)
    np.testing.assert_allclose(token_logprobs(manifest.probe), sent.numpy(), atol=1e-4)
    assert (sent - base).abs().max() > 1e-2


@TUNINGS
def test_published_arrays_do_not_follow_the_training(
    store: ImageStore,
    tuning: dict | None,
) -> None:
    trainer, _ = trained(store, tuning)
    _, arrays = trainer.publish(1)
    before = checksum(arrays)
    trainer.step(3, make_pairs(store, 6))
    assert checksum(arrays) == before


def test_a_probe_must_be_a_response(store: ImageStore) -> None:
    trainer = started(run_config())
    (pair,) = make_pairs(store, 1)
    expected = "expected at least one response token and no media token"
    for tokens in ((), (5, encoder_of(trainer).image_token_id)):
        with pytest.raises(UserError, match=expected):
            trainer.set_probe(one_answer(pair.prompt, tokens))


def test_publishing_does_not_disturb_training(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    pairs = make_pairs(store, 6)
    disturbed = started(run_config(tuning=LORA))
    quiet = started(run_config(tuning=LORA))
    disturbed.set_probe(one_answer(pairs[0].prompt, (5, 6)))
    for step in range(3):
        disturbed.step(step, pairs)
        disturbed.publish(step)
        disturbed.export(tmp_path / "export")
        written(disturbed)
        quiet.step(step, pairs)
    assert_same_arrays(weights_of(disturbed), weights_of(quiet))


def test_a_tied_head_is_sent_and_exported(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config(model=tiny_llava(TinyLlava(tied=True))))
    trainer.step(0, make_pairs(store, 6))
    arrays = weights_of(trainer)
    np.testing.assert_array_equal(
        arrays["lm_head.weight"],
        arrays["language_model.model.embed_tokens.weight"],
    )
    trainer.export(tmp_path / "out")
    written(trainer)
    assert load_model(tmp_path / "out", torch.float32) is not None


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


@TUNINGS
def test_a_resumed_run_equals_an_uninterrupted_one(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    if tuning is not None:
        # Dropout draws random numbers, so their state must be restored, too.
        tuning = {**tuning, "dropout": 0.2}
    batches = [make_pairs(store, 6, first) for first in (0, 6, 12, 18)]
    straight = started(run_config(tuning=tuning))
    train(straight, batches[:2])
    # What it writes meanwhile is the state of before these steps.
    straight.save(tmp_path / "half")
    expected = train(straight, batches[2:], first_step=2)
    torch.manual_seed(999)
    resumed = started(run_config(tuning=tuning))
    written(straight)
    assert resumed.load(tmp_path / "half") == []
    actual = train(resumed, batches[2:], first_step=2)
    assert losses_of(actual) == losses_of(expected)
    assert_same_arrays(weights_of(resumed), weights_of(straight))
    assert change_norm(resumed) == change_norm(straight) > 0


def test_damaged_checkpoints_are_refused(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config())
    trainer.step(0, make_pairs(store, 6))
    trainer.save(tmp_path / "good")
    written(trainer)
    with pytest.raises(UserError, match=r"expected learner\.json, got no such file"):
        trainer.load(tmp_path / "none")
    with pytest.raises(UserError, match="other trained weights"):
        started(run_config(tuning=LORA)).load(tmp_path / "good")
    for name in ("learner.json", "rank_0_000.safetensors", "rank_0_random.safetensors"):
        file = tmp_path / "good" / name
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        assert_refused(trainer, tmp_path / "good")
        file.unlink()
        assert_refused(trainer, tmp_path / "good")
        file.write_bytes(data)
    # Put together again, it can be loaded: nothing else was wrong.
    trainer.load(tmp_path / "good")


def assert_refused(trainer: Learner, folder: Path) -> None:
    """In one line."""
    expected = r"expected (the learner's (saved )?state|learner\.json)"
    with pytest.raises(UserError, match=expected) as caught:
        trainer.load(folder)
    assert "\n" not in str(caught.value)


def test_torch_trains_float32_only() -> None:
    config = with_model(run_config(), dtype="bfloat16")
    with pytest.raises(UserError, match=r"set learner\.engine = deepspeed"):
        Learner(config).start()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_said_at_once() -> None:
    with pytest.raises(UserError, match="expected a CUDA device"):
        Learner(run_config(num_gpus=1)).start()


@pytest.mark.real
def test_a_step_is_the_same_with_input_workers(store: ImageStore) -> None:
    """Bit by bit, with crops (mdpo) and noised images (povid)."""
    batches = [make_pairs(store, 4, first=4 * number) for number in range(3)]
    losses = {"loss": {"kind": "mdpo"}, "source_losses": {"bdhs": {"kind": "povid"}}}
    config = run_config(**losses, input_workers=1)
    alone = started(config.model_copy(update={"learner": without_workers(config)}))
    helped = started(config)
    ahead = helped.models.collator.ahead
    while not ahead.is_up:
        time.sleep(0.01)
    for step, batch in enumerate(batches, start=1):
        following = dict(enumerate(batches[step] if step < len(batches) else []))
        metrics = []
        for trainer in (helped, alone):
            trainer.prepare(step + 1, following)
            result, dropped = trainer.step(step, batch)
            assert not dropped
            metrics.append(without_times(result.metrics))
        assert metrics[0] == metrics[1]
        assert (ahead.num_ready_bytes > 0) == bool(following), "made meanwhile"
    helped.close()
    assert_same_arrays(weights_of(helped), weights_of(alone))


def without_times(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in metrics.items() if not name.startswith("time/")
    }


def without_workers(config: RunConfig) -> LearnerConfig:
    return config.learner.model_copy(update={"input_workers": 0})


def test_a_rank_begins_with_its_rows_and_with_the_filler(
    model_path: Path, store: ImageStore
) -> None:
    """Rank 1 of 2: places 1, 3 and 5, and of the others the first pair with a picture."""
    pairs = make_pairs(store, 6)
    pairs[0] = without_image(pairs[0])
    prepared: list[tuple[list[str], int]] = []
    collator: Any = SimpleNamespace(
        prepare=lambda pairs, step: prepared.append(([pair.id for pair in pairs], step))
    )
    trainer = Learner(run_config(), rank=1, world_size=2)
    trainer.models = SimpleNamespace(collator=collator)
    trainer.prepare(7, dict(enumerate(pairs)))
    trainer.prepare(7, {6: pairs[2], 7: pairs[4]})
    names = [
        [f"pair-{number}" for number in numbers] for numbers in ([1, 3, 5, 1], [4])
    ]
    assert prepared == [(names[0], 7), (names[1], 7)]
