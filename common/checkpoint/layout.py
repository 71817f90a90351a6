"""Which tensors of a checkpoint hold which parameters of its model: the one place where weights get their names.

    parameters  by their names in transformers: what a learner trains
    tensors     by their names in the checkpoint: what is pushed to engines, which read a push as they read the
                checkpoint, and what is exported

A tensor's name comes from the checkpoint itself, and the parameter from the tables by which transformers loads it. Most
parameters are one tensor under another name; a packed one, all experts of a layer, may be a tensor per expert.

`save_pretrained` of the pinned transformers writes two things otherwise than the hub has them, and the pinned vLLM
reads the hub's alone: it leaves a level out of the names of CLIP's and SigLIP's towers, and does not transpose the
experts of Qwen3-VL. `Layout.readable` makes the hub's of them. Of a checkpoint from the hub it changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.core_model_loading import dot_natural_key, revert_weight_conversion

from common.checkpoint.conversion import Conversion, Loaded, LoadingTables
from common.checkpoint.files import Shape, tensor_shapes
from common.errors import UserError
from common.loading import check_folder, check_weights, readable

Weights = Mapping[str, Tensor]
"""Parameters of a model by name."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a checkpoint, named and shaped as engines read them.

    Attributes:
        conversions: from parameters to tensors.
        shapes: of these tensors.
        tied: parameters without a tensor, since they are another one's -> that one's name.
        carried: tensors that no parameter holds, and shapes: what transformers leaves out at loading, such as the
            layers with which Qwen3.5 predicts several tokens at once. A learner cannot change them.
        renamed: name in the files -> name that engines read, where they differ.
        transposed: names in the files of tensors whose last two dimensions engines expect swapped.
    """

    conversions: tuple[Conversion, ...]
    shapes: Mapping[str, Shape]
    tied: Mapping[str, str]
    carried: Mapping[str, Shape]
    renamed: Mapping[str, str]
    transposed: Collection[str]

    @property
    def is_readable(self) -> bool:
        """Whether engines read the files as they are."""
        return not self.renamed and not self.transposed

    @property
    def parameters(self) -> dict[str, str]:
        """Tensor -> the parameter whose values it has, for all that differ in name alone."""
        parameters = {}
        for conversion in self.conversions:
            if conversion.unpacking is None and not conversion.transposed:
                (parameter,) = conversion.parameters
                parameters.update(dict.fromkeys(conversion.tensors, parameter))
        return parameters

    def tensors(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the model's weights; only packed ones take memory, those of one layer at a time."""
        for conversion in self.conversions:
            yield from conversion(weights).items()

    def pushed(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """The tensors, and tied parameters under their names in transformers.

        Engines keep a packed copy of a tied `lm_head`, which would silently stay stale.
        """
        yield from self.tensors(weights)
        for name, source in self.tied.items():
            yield name, weights[source]

    def readable_name(self, name: str) -> str:
        """The name by which engines read a tensor of the files."""
        return self.renamed.get(name, name)

    def readable(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """A tensor of the files as engines read it."""
        if name in self.transposed:
            tensor = tensor.transpose(-1, -2).contiguous()
        return self.readable_name(name), tensor


@lru_cache(maxsize=4)
def layout_of(model_path: str | Path) -> Layout:
    """The layout of a model directory; only its config and the headers of its weights are read.

    Raises:
        UserError: the pinned transformers does not know the architecture, or its files are not this model's.
    """
    model = empty_model(model_path)
    check_weights(model_path)
    where = f"model.path {model_path}"
    return make_layout(model, tensor_shapes(model_path), where)


def layout_of_model(model: Any) -> Layout:
    """The layout in which a model without a checkpoint is saved."""
    empty = _empty(model.named_parameters())
    saved = revert_weight_conversion(model, empty)
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    return make_layout(model, shapes, type(model).__name__)


@lru_cache(maxsize=4)
def empty_model(model_path: str | Path) -> Any:
    """The model of a directory's config.json on the meta device: names and shapes, no memory.

    Raises:
        UserError: there is no config, or the pinned transformers does not know its architecture.
    """
    check_folder(model_path)
    with readable(model_path, expected="an architecture"):
        config: Any = AutoConfig.from_pretrained(
            model_path, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(
                config, trust_remote_code=False
            )


def make_layout(
    model: Any,
    shapes: Mapping[str, Shape],
    where: str,
) -> Layout:
    """The layout of tensors of these names and shapes.

    Args:
        model: may be on the meta device.
        where: names the checkpoint in messages.

    Raises:
        UserError: a parameter has no tensor, or one of another shape.
    """
    tables = LoadingTables(model)
    parameters = _empty(model.named_parameters(remove_duplicate=False))
    groups: dict[str, dict[str, Loaded]] = {}
    carried = []
    for name in sorted(shapes, key=dot_natural_key):
        loaded = tables.loaded(name)
        if loaded is None or loaded.parameter not in parameters:
            carried.append(name)
        else:
            groups.setdefault(loaded.parameter, {})[name] = loaded

    names = _readable_names(shapes, tables)
    conversions = []
    readable_shapes: dict[str, Shape] = {}
    transposed: set[str] = set()
    for group in groups.values():
        conversion = tables.conversion(group, names)
        conversions.append(conversion)
        made = conversion(parameters)
        for name in group:
            shape = tuple(made[names[name]].shape)
            readable_shapes[names[name]] = shape
            # transformers takes it both ways; it looks at the shape.
            as_parameter = tuple(parameters[conversion.parameters[0]].shape)
            if conversion.transposed and shapes[name] == as_parameter:
                transposed.add(name)
            elif shapes[name] != shape:
                raise UserError(
                    f"{where}: expected {name} of shape {shape}, as config.json says, got {shapes[name]}; copy the "
                    "checkpoint again"
                )
    return Layout(
        tuple(conversions),
        readable_shapes,
        _tied(model, conversions, parameters, where),
        {names[name]: shapes[name] for name in carried},
        {name: names[name] for name in names if names[name] != name},
        transposed,
    )


def _empty(parameters: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Names and shapes without memory."""
    empty = {}
    for name, parameter in parameters:
        empty[name] = torch.empty_like(parameter, device="meta")
    return empty


def _readable_names(
    names: Iterable[str],
    tables: LoadingTables,
) -> dict[str, str]:
    """Name in the files -> name that engines read; `tables` has loaded all of them."""
    levels = tables.levels_left_out()
    readable_names = {}
    for name in names:
        readable_names[name] = name
        for level in levels:
            renamed, _ = level.rename_source_key(readable_names[name])
            readable_names[name] = renamed
    return readable_names


def _tied(
    model: Any,
    conversions: Iterable[Conversion],
    parameters: Collection[str],
    where: str,
) -> dict[str, str]:
    """Parameters without a tensor -> the one whose values they share (UserError when there is none)."""
    without = set(parameters)
    for conversion in conversions:
        without.difference_update(conversion.parameters)
    tied = {}
    for name, source in model.all_tied_weights_keys.items():
        if name in without:
            without.remove(name)
            tied[name] = source
    if without:
        raise UserError(
            f"{where}: expected every weight, got a checkpoint without {len(without)} of them ({min(without)}, …); "
            "copy the checkpoint again"
        )
    return tied
