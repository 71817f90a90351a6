"""What a rank writes: random state that goes on, and a disk that is full in the middle."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.data.images import ImageStore
from common.errors import UserError
from learner import learner
from learner.checkpoint.header import NAME, check_version, read_header
from learner.checkpoint.random_state import random_state, seed_all, set_random_state
from learner.publisher import export_policy
from tests.learner.helpers import make_pairs, run_config, started, written


def drawn() -> list[float]:
    """A number of every generator; normal ones come in pairs, of which one is kept."""
    return [
        random.random(),
        random.gauss(),
        float(np.random.random()),
        float(np.random.standard_normal()),
        float(torch.rand(1)),
        float(torch.randn(1)),
    ]


def test_random_numbers_go_on_from_a_file(tmp_path: Path) -> None:
    seed_all(3)
    drawn()
    save_file(random_state(), tmp_path / "random.safetensors")
    expected = [drawn() for _ in range(3)]
    seed_all(4)
    assert drawn() != expected[0]
    set_random_state(load_file(tmp_path / "random.safetensors"))
    assert [drawn() for _ in range(3)] == expected


def test_seeds_give_different_numbers() -> None:
    seed_all(2**40 + 1)
    first = drawn()
    seed_all(2**40 + 2)
    assert all(a != b for a, b in zip(first, drawn(), strict=True))


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_in_the_middle_is_told_and_training_goes_on(
    store: ImageStore, tmp_path: Path
) -> None:
    trainer = started(run_config())
    trainer.step(0, make_pairs(store, 6))
    with file_size_limit(20_000):
        trainer.save(tmp_path / "small")
        trainer.export(tmp_path / "policy")
        while (report := trainer.written()) is None:
            pass
    assert report.fault is not None
    assert "File too large: " in report.fault
    assert "rank_0_000.safetensors" in report.fault
    assert not (tmp_path / "policy").exists()
    trainer.step(1, make_pairs(store, 6, 6))
    trainer.save(tmp_path / "again")
    # The report is of the last save alone.
    written(trainer)
    assert read_header(tmp_path / "again").updates == 2


def test_a_step_waits_where_nothing_is_copied(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the state, and for a policy that takes long to write."""

    def slow_export(*args: Any) -> None:
        time.sleep(0.2)
        export_policy(*args)

    monkeypatch.setattr(learner, "export_policy", slow_export)
    config = run_config()
    checkpoint = config.checkpoint.model_copy(update={"background": False})
    trainer = started(config.model_copy(update={"checkpoint": checkpoint}))
    trainer.step(0, make_pairs(store, 6))
    trainer.save(tmp_path / "one")
    assert read_header(tmp_path / "one").updates == 1
    assert trainer.written() is not None
    trainer.export(tmp_path / "policy")
    assert trainer.written() is not None
    assert (tmp_path / "policy" / "config.json").exists()
    other = started(run_config())
    other.load(tmp_path / "one")


def test_the_size_is_known_before(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config())
    for step in range(2):
        trainer.save(tmp_path / str(step))
        trainer.export(tmp_path / str(step) / "policy")
        written(trainer)
        sizes = [
            path.stat().st_size
            for path in (tmp_path / str(step)).rglob("*.safetensors")
        ]
        expected = trainer.checkpoint_bytes(with_policy=True)
        # Headers, names and random state of a tiny model are no small part.
        assert expected < sum(sizes) < expected + 60_000
        trainer.step(step, make_pairs(store, 6))
    with_moments = trainer.checkpoint_bytes(with_policy=False)
    assert with_moments == 3 * 4 * sum(
        parameter.numel()
        for parameter in trainer.policy.parameters()
        if parameter.requires_grad
    )


def test_headers_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"format": 3, "world_size": 1}')
    with pytest.raises(
        UserError, match="expected the learner's state in format 2"
    ) as error:
        read_header(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / NAME).unlink()
    (tmp_path / "rank_0.pt").touch()
    for refuse in (read_header, check_version):
        with pytest.raises(UserError, match="a pickle that is not opened"):
            refuse(tmp_path)
