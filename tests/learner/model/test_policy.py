from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.config import Full, Lora, Model
from common.data.images import ImageStore
from common.errors import UserError
from common.model_parts import is_vision_tower, lora_targets
from learner.batch.collate import Collator, RowBatch
from learner.model.lora import merge_lora
from learner.model.policy import Policy, load_model, load_policy, load_reference
from tests.learner.families import FAMILIES, family
from tests.learner.helpers import encoded, gradients, make_pairs

TUNING = Lora(r=4, alpha=8)


@pytest.fixture
def batch(collator: Collator, store: ImageStore) -> RowBatch:
    return collator.collate(encoded(collator, make_pairs(store, 2)))


def lora_policy(model_path: Path) -> Policy:
    """A policy whose adapters say something: fresh ones add nothing, because B is 0."""
    policy = load_policy(Model(tuning=TUNING), model_path)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return policy


def test_full_freezes_the_tower_and_trains_the_projector(model_path: Path) -> None:
    policy = load_policy(Model(), model_path)
    parts = set()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parts.add(name.split(".")[2])
    # The last is net.lm_head.weight.
    assert parts == {"language_model", "multi_modal_projector", "weight"}
    thawed = load_policy(Model(freeze_vision=False), model_path)
    assert all(parameter.requires_grad for parameter in thawed.parameters())


def test_the_reference_shares_only_the_frozen_tower(model_path: Path) -> None:
    policy = load_policy(Model(), model_path)
    reference = load_reference(Model(), model_path, shares_tower_of=policy)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert any(parameter.requires_grad for parameter in policy.parameters())
    copies = dict(reference.named_parameters())
    for name, parameter in policy.named_parameters():
        assert (copies[name] is parameter) == is_vision_tower(name)
        assert torch.equal(copies[name], parameter)
    apart = load_reference(Model(), model_path)
    policy_ids = {id(parameter) for parameter in policy.parameters()}
    apart_ids = {id(parameter) for parameter in apart.parameters()}
    assert not policy_ids & apart_ids


def test_lora_sits_on_the_language_side_only(model_path: Path) -> None:
    policy = lora_policy(model_path)
    num_trainable = 0
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name
            assert "language_model" in name
            num_trainable += 1
    assert num_trainable > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_sides(name: str) -> None:
    """Every linear layer is on one side; presets take the language side's projections and all of the others."""
    model = family(name).model
    linear_names = set()
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linear_names.add(module_name)
    language = lora_targets(model, Lora(sides=("language",)))
    projector = lora_targets(model, Lora(sides=("projector",)))
    vision = lora_targets(model, Lora(sides=("vision",)))
    assert language and projector and vision
    targets = language + projector + vision
    assert set(targets) == linear_names - {"lm_head"}
    assert len(targets) == len(linear_names) - 1
    assert len(language) == 3 * 7, "three layers"
    assert all("layers." in target for target in language)


@torch.no_grad()
def test_adapters_off_is_the_base(model_path: Path, batch: RowBatch) -> None:
    policy = lora_policy(model_path)
    base = load_policy(Model(), model_path)(batch).summed
    without_adapters = policy(batch, adapters=False).summed
    torch.testing.assert_close(without_adapters, base, atol=0, rtol=0)
    assert (policy(batch).summed - base).abs().min() > 1e-3


@torch.no_grad()
def test_merging_equals_pefts_own(model_path: Path, batch: RowBatch) -> None:
    policy = lora_policy(model_path)
    adapted = policy(batch).summed
    gathered = {}
    for policy_name, parameter in policy.named_parameters():
        peft_name = policy_name.removeprefix("net.")
        # Copies: peft merges into its weights in place.
        gathered[peft_name] = parameter.detach().clone()
    merged, base = merge_lora(gathered, TUNING)
    plain = load_model(model_path, torch.float32)
    assert merged.keys() == base.keys() == dict(plain.named_parameters()).keys()
    for name, value in plain.named_parameters():
        assert torch.equal(value, base[name]), name
    theirs = policy.net.merge_and_unload()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=1e-6)
    policy.net = theirs
    torch.testing.assert_close(policy(batch).summed, adapted, atol=1e-4, rtol=1e-5)


def test_unknown_lora_targets(model_path: Path) -> None:
    with pytest.raises(UserError, match="none of which exists"):
        load_policy(Model(tuning=Lora(target_modules=("nope", "fc1"))), model_path)


def test_gradient_checkpointing_changes_no_gradient(
    model_path: Path,
    batch: RowBatch,
) -> None:
    runs = []
    for checkpointing in (False, True):
        policy = load_policy(Model(tuning=Full()), model_path, checkpointing)
        policy(batch).summed.sum().backward()
        runs.append(gradients(policy))
    plain, checkpointed = runs
    torch.testing.assert_close(checkpointed, plain, atol=1e-4, rtol=1e-4)


def copy_to_break(model_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_path, tmp_path / "model"))


def test_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"directory with config\.json, got"):
        load_model(tmp_path, torch.float32)


def test_no_weights(model_path: Path, tmp_path: Path) -> None:
    path = copy_to_break(model_path, tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"expected \*\.safetensors, got pytorch_model\.bin; convert"
    ):
        load_model(path, torch.float32)


def test_truncated_weights(model_path: Path, tmp_path: Path) -> None:
    path = copy_to_break(model_path, tmp_path)
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="expected readable safetensors"):
        load_model(path, torch.float32)


def test_incomplete_weights(model_path: Path, tmp_path: Path) -> None:
    path = copy_to_break(model_path, tmp_path)
    weights = load_file(path / "model.safetensors")
    weights.pop("language_model.model.norm.weight")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="a checkpoint without 1 of them"):
        load_model(path, torch.float32)


@pytest.mark.parametrize(
    "content", ['{"model_type": "no_such_model"}', "{broken", '{"model_type": "bert"}']
)
def test_unknown_architecture(model_path: Path, tmp_path: Path, content: str) -> None:
    path = copy_to_break(model_path, tmp_path)
    (path / "config.json").write_text(content)
    with pytest.raises(UserError, match="expected an architecture") as caught:
        load_model(path, torch.float32)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape(model_path: Path, tmp_path: Path) -> None:
    path = copy_to_break(model_path, tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="expected an architecture and weights"):
        load_model(path, torch.float32)
