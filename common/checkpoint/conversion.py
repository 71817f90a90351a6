"""From parameters of a model to tensors of a checkpoint: the way back from what transformers does at loading.

Written over transformers' own tables and operations (`conversion_mapping`, `core_model_loading`), which peft reads too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    Transpose,
    WeightConverter,
    WeightTransform,
    rename_source_key,
)

from common.model_parts import is_vision_tower


@dataclass(frozen=True, slots=True)
class Unpacking:
    """What is done to parameters, where more than a name changes.

    Attributes:
        converter: transformers' conversion at loading, reversed.
        names: what it calls a tensor -> the tensor's name.
        config: of the model, which some operations read.
    """

    converter: WeightTransform
    names: Mapping[str, str]
    config: Any

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # A converter keeps the tensors that it is given.
        converter: Any = copy.deepcopy(self.converter)
        target = ""
        for parameter, weight in weights.items():
            target, pattern = converter.rename_source_key(parameter)
            converter.add_tensor(target, parameter, pattern, weight)
        made = converter.convert(target, config=self.config)
        return {self.names[name]: tensor for name, tensor in made.items()}


@dataclass(frozen=True, slots=True)
class Conversion:
    """Parameters of a model and the tensors that hold them.

    Attributes:
        parameters: names in transformers.
        tensors: names in the checkpoint.
        transposed: whether the last two dimensions are swapped.
        unpacking: None where there is one parameter, and every tensor has its values.
    """

    parameters: tuple[str, ...]
    tensors: tuple[str, ...]
    transposed: bool = False
    unpacking: Unpacking | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, from parameters by name; they share memory with these where nothing but the name changes."""
        wanted = {name: weights[name] for name in self.parameters}
        if self.unpacking is not None:
            return self.unpacking(wanted)
        (weight,) = wanted.values()
        if self.transposed:
            weight = weight.transpose(-1, -2).contiguous()
        return dict.fromkeys(self.tensors, weight)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Where transformers puts a tensor of a checkpoint.

    Attributes:
        parameter: its name in the model; the first one, where a tensor is split.
        renamed: the tensor's name when `converter` gets it.
        converter: what changes more than the name.
    """

    parameter: str
    renamed: str
    converter: WeightConverter | None

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that the tensor is part of, or is split into."""
        if self.converter is None:
            return (self.parameter,)
        patterns = self.converter.target_patterns
        return tuple(
            self.parameter.replace(patterns[0], pattern) for pattern in patterns
        )

    @property
    def transposes(self) -> bool:
        """Whether the tensor is transposed, unless it has the parameter's shape."""
        if self.converter is None:
            return False
        return all(
            isinstance(operation, Transpose) and operation.check_dims
            for operation in self.converter.operations
        )


class LoadingTables:
    """How transformers finds the parameters of a model in a checkpoint; to be asked for names in natural order."""

    def __init__(self, model: Any) -> None:
        self._renamings: list[Any] = []
        self._converters: list[WeightConverter] = []
        for transform in get_model_conversion_mapping(model):
            if isinstance(transform, WeightConverter):
                self._converters.append(transform)
            else:
                self._renamings.append(transform)
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()
        self.config = model.config

    def loaded(self, name: str) -> Loaded | None:
        """Where a tensor goes; None if no parameter or buffer of the model takes it."""
        parameter, pattern = self._rename(name, self._renamings, self._converters)
        if parameter not in self._state and name in self._state:
            return Loaded(name, name, None)
        if parameter not in self._state:
            return None
        if pattern is None:
            return Loaded(parameter, name, None)
        renamed, _ = self._rename(name, self._renamings, [])
        for converter in self._converters:
            if pattern in converter.source_patterns:
                return Loaded(parameter, renamed, converter)
        raise AssertionError(f"no converter has the pattern {pattern}")

    def conversion(
        self,
        group: Mapping[str, Loaded],
        names: Mapping[str, str],
    ) -> Conversion:
        """The way back to all tensors of the same parameters.

        Args:
            group: name in the files -> where that tensor goes.
            names: name in the files -> the tensor's name.
        """
        first, *_ = group.values()
        tensors = tuple(names[name] for name in group)
        if first.converter is None or first.transposes:
            return Conversion(first.parameters, tensors, first.transposes)
        unpacked = {}
        for name, loaded in group.items():
            unpacked[loaded.renamed] = names[name]
            # A name that is in the model only after the conversion has not got the model's prefix before it.
            unpacked[f"{self._prefix}.{loaded.renamed}"] = names[name]
        unpacking = Unpacking(
            first.converter.reverse_transform(), unpacked, self.config
        )
        return Conversion(first.parameters, tensors, unpacking=unpacking)

    def levels_left_out(self) -> list[Any]:
        """Renamings that put in what the hub's names of vision towers have, and those asked for so far have not."""
        levels = []
        for renaming in self._renamings:
            if not isinstance(renaming, PrefixChange) or renaming.was_used():
                continue
            removes = renaming.prefix_to_remove is not None
            if removes and is_vision_tower(renaming.scope_prefix or ""):
                levels.append(renaming.reverse_transform())
        return levels

    def _rename(
        self,
        name: str,
        renamings: list[Any],
        converters: list[WeightConverter],
    ) -> tuple[str, str | None]:
        return rename_source_key(  # type: ignore[no-any-return]
            name, renamings, converters, self._prefix, self._state
        )
