"""Weights from safetensors into a model, one parameter after the other.

transformers builds a model without memory for its weights. Its loader then goes through the parameters: it reads the
tensors that make one up, renames and converts them, sets the parameter, and goes on. Here that is all it does at a time
(its threads are off), and whatever a parameter is to become, such as a share under ZeRO-3, it becomes at once. Files
are read, not mapped: pages of a mapped file stay with the process, and change with the file. So a process never holds
more than what is kept, and one parameter (of a mixture of experts all of a layer's).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from common.checkpoint.files import weight_files

Place = Callable[[nn.Parameter], None]
"""Brings a whole parameter to where it stays, in place. Called in the same order on all ranks."""

_ONE_AT_A_TIME = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' switch: without it its threads read ahead of what is set, without a limit."""


class LazyTensor:
    """A tensor on disk, as transformers' loader takes it: read when it is sliced."""

    def __init__(self, shards: Shards, file: Path, name: str) -> None:
        self._shards = shards
        self._file = file
        self._name = name

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Tensor = self._shards.opened(self._file).get_tensor(self._name)
        return tensor[index]


class Shards:
    """The files of a checkpoint, of which one is open at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: Path | None = None
        self._open: Any = None

    def opened(self, file: Path) -> Any:
        """The file, in place of the one before."""
        if file != self._file:
            self._open = safe_open(file, framework="pt", backend="pread")
            self._file = file
        return self._open

    def tensors(self) -> dict[str, LazyTensor]:
        """All tensors by their names in the files.

        Raises:
            SafetensorError: a file is damaged.
            UserError: there is an index that names no file.
            OSError: it names a file that is not there.
        """
        tensors: dict[str, LazyTensor] = {}
        for file in weight_files(self._directory):
            for name in self.opened(file).keys():  # noqa: SIM118
                tensors[name] = LazyTensor(self, file, name)
        return tensors

    def close(self) -> None:
        """Let the last file go."""
        self._open = None
        self._file = None


@contextmanager
def one_at_a_time(place: Place | None) -> Iterator[None]:
    """While this lasts, transformers' loader sets one parameter after the other, and each is placed as it is set."""

    def placed(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # A model is first built of parameters without memory.
        if place is not None and parameter is not None and not parameter.is_meta:
            place(parameter)

    before = os.environ.get(_ONE_AT_A_TIME)
    os.environ[_ONE_AT_A_TIME] = "1"
    hook = register_module_parameter_registration_hook(placed)
    try:
        yield
    finally:
        hook.remove()
        if before is None:
            del os.environ[_ONE_AT_A_TIME]
        else:
            os.environ[_ONE_AT_A_TIME] = before
