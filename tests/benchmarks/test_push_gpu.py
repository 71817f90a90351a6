"""The benchmark of pushes on one GPU asks for runs that there are; its figures need a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.push_gpu import TRANSPORTS, config_of, parse
from common.config import SHAPES_POLICY, Lora


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_transport_carries_what_it_is_named_for(
    transport: str, tmp_path: Path
) -> None:
    config = config_of(Path(SHAPES_POLICY), tmp_path, transport)
    assert config.transport == transport
    assert config.shares_gpus
    assert isinstance(config.model.tuning, Lora)
    pushed = "adapter" if transport == "adapter" else "merged"
    assert config.model.tuning.push == pushed


def test_the_command_line() -> None:
    options = parse(["--transports", "ipc", "--repeats", "2"])
    assert options.transports == ["ipc"]
    assert options.size == "7b"
    with pytest.raises(SystemExit):
        parse(["--transports", "nccl"])
