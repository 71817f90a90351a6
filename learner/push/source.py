"""The weights of a push as they are now, a few parameters at a time: gathered, dequantised, merged, named, compared.

    ranks' shares ──gather──▶ parameters ──dequantise──▶ ──merge W + s·B·A──▶ ──layout──▶ tensors of the checkpoint
                                                              │
                                    the start policy's ──▶ change norm

Parameters are gathered together as long as they take no more memory than the largest tensor. All ranks gather, in one
order; rank 0 makes tensors of them and sends these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.checkpoint.conversion import Conversion
from common.checkpoint.layout import Layout
from common.config import Lora, Tuning
from common.protocols import TrainEngine
from common.push.plan import TensorSpec
from learner.change_norm import Change
from learner.model.lora import plain_name
from learner.model.merging import Survival, merged_weight
from learner.model.policy import Policy
from learner.model.quantized import full_shape, full_weight


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter of the Hugging Face model, and the adapter on its layer.

    Attributes:
        a, b: of the adapter, [r, input width] and [output width, r].
        scale: of the product.
        changes: whether training changes it.
    """

    parameter: nn.Parameter
    a: nn.Parameter | None
    b: nn.Parameter | None
    scale: float

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What must be whole for `value`."""
        return [part for part in (self.parameter, self.a, self.b) if part is not None]

    @property
    def changes(self) -> bool:
        return self.a is not None or self.parameter.requires_grad

    def empty(self, dtype: torch.dtype) -> Tensor:
        """Shape and dtype of `value`, without memory."""
        shape, is_quantized = full_shape(self.parameter)
        if not is_quantized:
            dtype = self.parameter.dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    def start(self) -> Tensor:
        """Without the adapter."""
        return full_weight(self.parameter)

    def value(self, start: Tensor, survival: Survival) -> Tensor:
        """As it is now, given `start`."""
        if self.a is None or self.b is None:
            return start
        a, b = self.a.detach(), self.b.detach()
        return merged_weight(start, a, b, self.scale, survival)


@dataclass(frozen=True, slots=True)
class Item:
    """What is made of some parameters at once.

    Attributes:
        specs: of the tensors, in order.
        num_bytes: of all of them.
    """

    conversion: Conversion
    specs: tuple[TensorSpec, ...]
    num_bytes: int


class WeightSource:
    """All weights of a policy under their names in its checkpoint.

    Args:
        policy: with its adapters.
        engine: that can make its parameters whole.
        layout: of the start policy's checkpoint.
        dtype: of weights that are quantised here.
    """

    def __init__(
        self,
        policy: Policy,
        engine: TrainEngine,
        layout: Layout,
        tuning: Tuning,
        dtype: torch.dtype,
    ) -> None:
        self._engine = engine
        self._pieces = _pieces(policy, tuning)
        self._items = _items(layout, self._pieces, dtype)
        self._groups = _groups(self._items)
        self._change = Change()
        self._survival = Survival()

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors, in the order in which they come."""
        specs: list[TensorSpec] = []
        for item in self._items:
            specs += item.specs
        return tuple(specs)

    @property
    def change_norm(self) -> float:
        """L2 norm of the difference from the start policy, of the tensors that were asked for last."""
        return self._change.norm

    @property
    def merged_survives(self) -> float | None:
        """The share of the adapters' update that rounding left of it in these tensors; None where nothing is merged."""
        return self._survival.share

    def tensors(
        self, start: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[TensorSpec, Tensor]]:
        """Every tensor, whole until the next is asked for (collective).

        Args:
            start: the start policy's parameters by name, where training changes more than adapters.
        """
        self._survival = Survival()
        with Change() as self._change:
            for group in self._groups:
                with ExitStack() as whole:
                    self._gather(group, start, whole)
                    for item in group:
                        yield from self._made(item, start)

    def gather(self, start: Mapping[str, nn.Parameter]) -> None:
        """The part of a rank that sends nothing: gather all that `tensors` gathers elsewhere (collective)."""
        for group in self._groups:
            with ExitStack() as whole:
                self._gather(group, start, whole)

    def _gather(
        self,
        group: list[Item],
        start: Mapping[str, nn.Parameter],
        whole: ExitStack,
    ) -> None:
        now: list[nn.Parameter] = []
        before: list[nn.Parameter] = []
        for item in group:
            for name in item.conversion.parameters:
                piece = self._pieces[name]
                now += piece.parameters
                if name in start and piece.changes:
                    before.append(start[name])
        whole.enter_context(self._engine.whole(now))
        whole.enter_context(self._engine.whole(before))

    def _made(
        self, item: Item, start: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[TensorSpec, Tensor]]:
        values = {}
        for name in item.conversion.parameters:
            piece = self._pieces[name]
            before = piece.start()
            values[name] = piece.value(before, self._survival)
            if self._engine.rank == 0 and piece.changes:
                if name in start:
                    before = start[name].detach()
                self._change.add(values[name], before)
        made = item.conversion(values)
        for spec in item.specs:
            yield spec, made[spec.name]


def _pieces(policy: Policy, tuning: Tuning) -> dict[str, Piece]:
    """By name in the Hugging Face model; tied parameters under each of their names."""
    parameters = dict(policy.net.named_parameters(remove_duplicate=False))
    scale = tuning.alpha / tuning.r if isinstance(tuning, Lora) else 0.0
    pieces = {}
    for peft_name, parameter in parameters.items():
        name, name_of_a, name_of_b = plain_name(peft_name)
        if name is not None:
            a, b = parameters.get(name_of_a), parameters.get(name_of_b)
            pieces[name] = Piece(parameter, a, b, scale)
    return pieces


def _items(
    layout: Layout, pieces: Mapping[str, Piece], dtype: torch.dtype
) -> list[Item]:
    empty = {name: piece.empty(dtype) for name, piece in pieces.items()}
    tied: dict[str, list[str]] = {}
    for name, source in layout.tied.items():
        tied.setdefault(source, []).append(name)
    items = []
    for conversion in layout.conversions:
        made = conversion(empty)
        aliases: list[str] = []
        if conversion.unpacking is None:
            # All of its tensors have the same values.
            first, *aliases = made
            made = {first: made[first]}
            (parameter,) = conversion.parameters
            aliases += tied.pop(parameter, ())
        specs = []
        for name, tensor in made.items():
            dtype_name = str(tensor.dtype).removeprefix("torch.")
            shape = tuple(tensor.shape)
            specs.append(TensorSpec(name, dtype_name, shape, tuple(aliases)))
        num_bytes = sum(spec.num_bytes for spec in specs)
        items.append(Item(conversion, tuple(specs), num_bytes))
    assert not tied, f"tied to a parameter that is packed: {tied}"
    return items


def _groups(items: list[Item]) -> list[list[Item]]:
    """Items in order, as many together as take no more bytes than the largest alone."""
    limit = max(item.num_bytes for item in items)
    groups: list[list[Item]] = []
    num_bytes = limit
    for item in items:
        if num_bytes + item.num_bytes > limit:
            groups.append([])
            num_bytes = 0
        groups[-1].append(item)
        num_bytes += item.num_bytes
    return groups
