"""The learner on the plain torch engine; `test_engines` runs the same class on DeepSpeed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
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
from common.records import PreferencePair, Response
from common.weights import LM_HEAD, checksum, from_arrays, hub_name
from learner.batch.collate import Collator
from learner.batch.plan import MicroSize, plan_batch
from learner.forward.tree import tree_batch
from learner.learner import Learner
from learner.losses.objective import Objective
from learner.losses.pair_logps import PairLogps, pair_logps
from learner.model.fast_path import FastPath
from learner.model.policy import Policy, freeze_copy, load_model, load_policy
from learner.update import accumulate
from tests.learner.helpers import LORA, gradients, make_pairs, models_of, run_config
from tests.tiny_models import TinyLlava, tiny_llava

TUNINGS = pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])


def started(config: RunConfig) -> Learner:
    trainer = Learner(config)
    trainer.start()
    return trainer


def weights_of(trainer: Learner) -> dict[str, np.ndarray]:
    return trainer.publish(0)[1]


def encoder_of(trainer: Learner) -> ChatEncoder:
    return trainer.models.collator.encoder


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_start_counts_parameters() -> None:
    facts = Learner(run_config()).start()
    assert facts["num_params"] > facts["num_trainable_params"] > 0
    assert (facts["device"], facts["world_size"]) == ("cpu", 1)
    lora = Learner(run_config(tuning=LORA)).start()
    assert lora["num_trainable_params"] < facts["num_trainable_params"] / 10


@TUNINGS
def test_training_raises_the_margin(store: ImageStore, tuning: dict | None) -> None:
    trainer = started(run_config(tuning=tuning))
    pairs = make_pairs(store, 6)
    results = [trainer.step(step, pairs)[0] for step in range(5)]
    first, last = results[0].metrics, results[-1].metrics
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < first["loss"]
    assert last["rewards/accuracies"] == 1.0
    assert results[0].pair_ids == tuple(pair.id for pair in pairs)
    assert (last["pairs/online"], last["pairs/bdhs"], last["pairs/trained"]) == (
        3,
        3,
        6,
    )
    by_source = [last["rewards/margins/online"], last["rewards/margins/bdhs"]]
    assert np.mean(by_source) == pytest.approx(last["rewards/margins"])
    assert {
        "lr",
        "grad_norm",
        "tokens",
        "time/step_s",
        "rewards/chosen",
        "logps/rejected",
    } <= last.keys()
    num_tokens = 0
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            num_tokens += len(encoder_of(trainer).encode_response(side.text))
    assert last["tokens"] == num_tokens


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8])
def test_micro_batches_add_up_to_one_big_batch(
    model_path: Path,
    store: ImageStore,
    micro_batch: int,
) -> None:
    """Float64, so that equal means equal: 7 pairs in micro-batches of 1, 3 or 4 against one of 8."""
    policy = load_policy(Model(), model_path).double()
    reference = freeze_copy(policy, share_tower=True)
    head = policy.model.lm_head.weight
    with torch.no_grad():
        head.add_(torch.randn_like(head) * 0.05)
    collator = Collator(ChatEncoder(model_path, 256))

    models = models_of((policy, reference), collator)

    def gradients_of(size: int) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        plan = plan_batch(make_pairs(store, 7), collator, MicroSize(size), 0, 1)
        objective = Objective.of(
            LearnerConfig(loss=Sigmoid(nll_weight=0.1)), make_pairs(store, 7)
        )
        accumulate(models, plan, objective)
        return gradients(policy)

    torch.testing.assert_close(
        gradients_of(micro_batch), gradients_of(8), atol=1e-12, rtol=1e-9
    )


def test_refused_pairs_come_back_and_do_not_count(store: ImageStore) -> None:
    good = make_pairs(store, 4)
    same = replace(good[0], id="same", rejected=good[0].chosen)
    mixed, clean = started(run_config()), started(run_config())
    image_token = encoder_of(mixed).image_token_id
    media = replace(good[0], id="media", chosen=Response("", (5, image_token)))
    result, dropped = mixed.step(0, [same, *good, media])
    assert [(drop.id, drop.reason) for drop in dropped] == [
        ("same", "pair_identical"),
        ("media", "response_media"),
    ]
    assert result.pair_ids == tuple(pair.id for pair in good)
    assert result.metrics["pairs/trained"] == 4
    clean.step(0, good)
    assert_same(weights_of(mixed), weights_of(clean))


def test_a_batch_without_a_usable_pair_changes_nothing(store: ImageStore) -> None:
    trainer = started(run_config())
    (pair,) = make_pairs(store, 1)
    result, dropped = trainer.step(0, [replace(pair, rejected=pair.chosen)])
    assert result.pair_ids == ()
    assert result.metrics["steps_skipped"] == 1
    assert [drop.reason for drop in dropped] == ["pair_identical"]
    assert trainer.publish(1)[0].change_norm == 0


def test_a_loss_that_is_not_finite_skips_the_step(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, pairs = started(run_config()), make_pairs(store, 6)
    original = learner.losses.pair_losses
    monkeypatch.setattr(
        learner.update, "pair_losses", lambda *args: original(*args) * float("nan")
    )
    result, dropped = trainer.step(0, pairs)
    assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert (result.pair_ids, result.metrics["steps_skipped"]) == ((), 1)
    assert trainer.publish(1)[0].change_norm == 0
    monkeypatch.undo()
    result, dropped = trainer.step(1, pairs)
    assert (len(result.pair_ids), dropped, result.metrics["steps_skipped"]) == (
        6,
        [],
        1,
    )


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
    assert ({drop.reason for drop in dropped}, result.pair_ids) == (
        {"step_skipped"},
        (),
    )
    assert trainer.publish(1)[0].change_norm == 0


def test_a_run_that_stays_not_finite_stops_and_leaves_its_batch(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Limit 2: bad, good, bad, bad stops; the good step between starts the count again."""
    config = run_config(max_skipped_steps=2)
    trainer = started(config.model_copy(update={"run": Run(dir=tmp_path)}))
    pairs, original = make_pairs(store, 3), learner.losses.pair_losses
    for step, bad in enumerate((True, False, True)):
        monkeypatch.setattr(
            learner.update,
            "pair_losses",
            lambda *args, bad=bad: original(*args) * (np.inf if bad else 1),
        )
        trainer.step(step, pairs)
    with pytest.raises(
        UserError, match=r"got 2 steps in a row .*skipped_step_3\.json"
    ) as caught:
        trainer.step(3, pairs)
    assert "\n" not in str(caught.value)
    saved = TypeAdapter(list[PreferencePair]).validate_json(
        (tmp_path / "skipped_step_3.json").read_bytes()
    )
    assert saved == pairs


def test_a_run_without_a_usable_pair_stops_and_says_why(store: ImageStore) -> None:
    """Limit 2: empty, good, empty, empty stops; the message counts what was refused since the good step."""
    trainer = started(run_config(max_skipped_steps=2))
    pair, *good = make_pairs(store, 3)
    same = replace(pair, rejected=pair.chosen)
    empty = replace(pair, chosen=Response("", ()))
    for step, pairs in enumerate(([same], good, [same, empty])):
        trainer.step(step, pairs)
    reasons = r"\{'pair_identical': 2, 'response_empty': 1\}"
    with pytest.raises(
        UserError, match=f"got 2 batches in a row without one .*refused {reasons}"
    ) as caught:
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
    ours = packed.step(0, pairs)[0].metrics
    theirs = plain.step(0, pairs)[0].metrics
    for name in ("loss", "grad_norm", "rewards/margins", "tokens"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4)


def test_pairs_of_one_prompt_fill_a_forward_with_it_once(store: ImageStore) -> None:
    """Without trees each row has the prompt again, and none is left out of the count."""
    config, pairs = run_config(fast={"pack_tokens": 200}), make_pairs(store, 6)
    same = [replace(pair, prompt=pairs[0].prompt) for pair in pairs]
    plain, packed = started(run_config()), started(config)
    batches = packed.plan(same).micro_batches
    assert len(batches) < len(packed.plan(pairs).micro_batches)
    assert all(tree_batch(batch.pairs).num_tokens <= 200 for batch in batches)
    ours = packed.step(0, same)[0].metrics
    theirs = plain.step(0, same)[0].metrics
    for name in ("loss", "grad_norm", "rewards/margins", "tokens"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4)
    rows = started(run_config(fast={"pack_tokens": 200, "share_prompt": False}))
    assert len(rows.plan(same).micro_batches) == len(packed.plan(pairs).micro_batches)


@TUNINGS
def test_every_switch_off_trains_the_same(
    store: ImageStore,
    tuning: dict | None,
) -> None:
    names = ("share_prompt", "share_vision", "fused_logps", "fused_layers", "onednn")
    off = dict.fromkeys(names, False) | {"reference_cache": "off"}
    fast = started(run_config(tuning=tuning))
    slow = started(run_config(tuning=tuning, fast=off))
    for step in range(3):
        ours = fast.step(step, make_pairs(store, 6, 6 * step))[0].metrics
        theirs = slow.step(step, make_pairs(store, 6, 6 * step))[0].metrics
        for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name


def test_what_cannot_be_fast_is_said() -> None:
    """A trained tower has nothing to share; without shared prompts, the reference cache has no keys."""
    config = run_config()
    thawed = config.model_copy(
        update={"model": config.model.model_copy(update={"freeze_vision": False})}
    )
    assert Learner(config).start()["fallbacks"] == {}
    assert set(Learner(thawed).start()["fallbacks"]) == {"share_vision"}
    plain = Learner(
        run_config(fast={"share_prompt": False, "fused_layers": True})
    ).start()["fallbacks"]
    assert plain == dict.fromkeys(
        ("share_vision", "fused_layers", "reference_cache"), "needs share_prompt"
    )


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


def test_a_checkpoint_of_another_number_of_ranks_names_the_way_out(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    trainer = started(run_config())
    trainer.save(tmp_path / "one")
    file = tmp_path / "one" / "rank_0.pt"
    torch.save(torch.load(file, weights_only=True) | {"world_size": 2}, file)
    with pytest.raises(
        UserError,
        match=r"written by 1 ranks, got one of 2; resume with learner\.num_ranks = 2",
    ):
        trainer.load(tmp_path / "one")


def test_the_exported_adapter_is_pefts(
    store: ImageStore,
    tmp_path: Path,
    model_path: Path,
) -> None:
    """Base and adapter loaded by peft alone give the merged export's log-probs."""
    sides = {**LORA, "sides": ["language", "projector", "vision"]}
    trainer, pairs = started(run_config(tuning=sides)), make_pairs(store, 6)
    for step in range(2):
        trainer.step(step, pairs)
    trainer.export(tmp_path / "out")
    adapted = PeftModel.from_pretrained(
        load_model(model_path, torch.float32), tmp_path / "out" / "adapter"
    )
    batch = trainer.models.collator.single(pairs[0].prompt, (5, 6, 7))
    with torch.no_grad():
        theirs = Policy(adapted.eval())(batch).token_logps
        merged_model = load_model(tmp_path / "out", torch.float32).eval()
        merged = Policy(merged_model)(batch).token_logps
        base_model = load_model(model_path, torch.float32).eval()
        base = Policy(base_model)(batch).token_logps
    torch.testing.assert_close(theirs, merged, atol=1e-4, rtol=1e-4)
    assert (theirs - base).abs().max() > 1e-3


@TUNINGS
def test_publish(store: ImageStore, model_path: Path, tuning: dict | None) -> None:
    """What is sent is the trained policy: its own log-probs, not the base's; LoRA comes merged."""
    trainer, pairs = started(run_config(tuning=tuning)), make_pairs(store, 6)
    trainer.set_probe(pairs[0].prompt, (5, 6, 7))
    assert trainer.publish(0)[0].change_norm == 0
    for step in range(3):
        trainer.step(step, pairs)
    manifest, arrays = trainer.publish(1)
    assert manifest.version == 1
    assert manifest.change_norm > 1e-2
    assert manifest.checksum == checksum(arrays)
    assert (
        manifest.num_tensors
        == len(arrays)
        == len(load_model(model_path, torch.float32).state_dict())
    )
    assert manifest.num_bytes == sum(array.nbytes for array in arrays.values())
    assert LM_HEAD in arrays
    fresh = load_model(model_path, torch.float32).eval()
    received = from_arrays(arrays)
    batch = trainer.models.collator.single(pairs[0].prompt, (5, 6, 7))
    with torch.no_grad():
        base = Policy(fresh)(batch).token_logps[0]
        for name, parameter in fresh.named_parameters():
            parameter.copy_(received[hub_name(name)])
        sent = Policy(fresh)(batch).token_logps[0]
    np.testing.assert_allclose(manifest.probe.token_logprobs, sent.numpy(), atol=1e-4)
    assert (sent - base).abs().max() > 1e-2
    before = checksum(arrays)
    trainer.step(3, pairs)
    assert checksum(arrays) == before, "published arrays must not follow the training"


def test_a_probe_must_be_a_response(store: ImageStore) -> None:
    trainer, (pair,) = started(run_config()), make_pairs(store, 1)
    for tokens in ((), (5, encoder_of(trainer).image_token_id)):
        with pytest.raises(
            UserError, match="expected at least one response token and no media token"
        ):
            trainer.set_probe(pair.prompt, tokens)


def test_publishing_does_not_disturb_training(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    pairs = make_pairs(store, 6)
    disturbed = started(run_config(tuning=LORA))
    quiet = started(run_config(tuning=LORA))
    disturbed.set_probe(pairs[0].prompt, (5, 6))
    for step in range(3):
        disturbed.step(step, pairs)
        disturbed.publish(step)
        disturbed.export(tmp_path / "export")
        quiet.step(step, pairs)
    assert_same(weights_of(disturbed), weights_of(quiet))


def test_a_tied_head_is_sent_and_exported(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config(model=tiny_llava(TinyLlava(tied=True))))
    trainer.step(0, make_pairs(store, 6))
    arrays = weights_of(trainer)
    np.testing.assert_array_equal(
        arrays[LM_HEAD], arrays["language_model.model.embed_tokens.weight"]
    )
    trainer.export(tmp_path / "out")
    assert load_model(tmp_path / "out", torch.float32) is not None


@TUNINGS
def test_export_loads_with_transformers(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    trainer, pairs = started(run_config(tuning=tuning)), make_pairs(store, 6)
    trainer.step(0, pairs)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    trainer.export(out)
    assert not (out / "old").exists()
    model, report = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert AutoProcessor.from_pretrained(out).chat_template
    assert (out / "generation_config.json").is_file()
    batch = Collator(ChatEncoder(out, 256)).single(pairs[0].prompt, (5, 6, 7))
    trainer.set_probe(pairs[0].prompt, (5, 6, 7))
    with torch.no_grad():
        exported = Policy(model.eval())(batch).token_logps[0]
    np.testing.assert_allclose(
        exported.numpy(), trainer.publish(1)[0].probe.token_logprobs, atol=1e-4
    )
    assert (out / "adapter" / "adapter_model.safetensors").exists() == (
        tuning is not None
    )


@TUNINGS
def test_a_resumed_run_equals_an_uninterrupted_one(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    tuning = tuning and {**tuning, "dropout": 0.2}  # draws random numbers
    batches = [make_pairs(store, 6, first) for first in (0, 6, 12, 18)]
    straight = started(run_config(tuning=tuning))
    for step, batch in enumerate(batches):
        straight.step(step, batch)
        if step == 1:
            straight.save(tmp_path / "half")
    torch.manual_seed(999)
    resumed = started(run_config(tuning=tuning))
    assert resumed.load(tmp_path / "half") == {"step": 1, "steps_skipped": 0}
    for step in (2, 3):
        result, _ = resumed.step(step, batches[step])
    assert_same(weights_of(resumed), weights_of(straight))
    assert resumed.publish(4)[0].change_norm == straight.publish(4)[0].change_norm > 0
    assert result.step == 3


def test_damaged_checkpoints_are_refused(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config())
    trainer.step(0, make_pairs(store, 6))
    trainer.save(tmp_path / "good")
    with pytest.raises(UserError, match=r"expected rank_0\.pt, got no such file"):
        trainer.load(tmp_path / "none")
    with pytest.raises(UserError, match="other trainable weights"):
        started(run_config(tuning=LORA)).load(tmp_path / "good")
    for name in ("rank_0.pt", "engine/engine.pt"):
        file = tmp_path / "good" / name
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(
            UserError, match="expected the learner's saved state"
        ) as caught:
            trainer.load(tmp_path / "good")
        assert "\n" not in str(caught.value)
        file.write_bytes(data)
    trainer.load(tmp_path / "good")


def test_torch_trains_float32_only() -> None:
    config = run_config()
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"dtype": "bfloat16"})}
    )
    with pytest.raises(UserError, match=r"set learner\.engine = deepspeed"):
        Learner(config).start()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_said_at_once() -> None:
    with pytest.raises(UserError, match="expected a CUDA device"):
        Learner(run_config(num_gpus=1)).start()
