"""The checks of a push, of whole weights or of an adapter, before anything is changed.

A push is refused when a tensor is missing, unknown or of another shape, or when the bytes are not those that the
manifest describes. vLLM itself would load part of a model without a word: it fuses layers, so one missing projection
goes wrong in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.checkpoint.files import Shape
from common.checkpoint.layout import Layout
from common.errors import UserError
from common.model_parts import is_vision_tower
from common.protocols import Tensors
from common.records import WeightManifest
from common.weights import BFLOAT16, checksum

log = logging.getLogger("sightline")

NAMES_SHOWN = 3
"""Names of tensors, or of layers, in an error message."""
DIGITS_SHOWN = 16
"""Hexadecimal digits of a checksum in an error message."""


@dataclass(frozen=True, slots=True)
class ExpectedPush:
    """What a push must consist of.

    Attributes:
        shapes: name of every tensor -> its shape.
        optional: names that may be left out or added.
        carried: names of the checkpoint that a learner does not hold; the engine keeps what it read at its start.
        source: whose tensors these are, for the error message.
        remedy: what to do about a wrong push, for the error message.
    """

    shapes: Mapping[str, Shape]
    optional: Collection[str]
    source: str
    remedy: str
    carried: Collection[str] = ()

    def check(
        self,
        manifest: WeightManifest,
        tensors: Tensors,
    ) -> None:
        """Refuse a push that does not fit the model or its configuration.

        Raises:
            UserError: names or shapes differ.
        """
        pushed = {}
        for name, array in tensors.items():
            pushed[name.removesuffix(BFLOAT16)] = tuple(array.shape)
        self.check_shapes(manifest.version, pushed)

    def check_shapes(
        self,
        version: int,
        pushed: Mapping[str, Shape],
    ) -> None:
        """Refuse a push of these names and shapes, before any of it is here, unless they are the model's.

        Raises:
            UserError: they are not; all names that differ are in the log.
        """
        missing = self.shapes.keys() - pushed.keys()
        missing -= set(self.optional)
        unknown = pushed.keys() - self.shapes.keys()
        unknown -= set(self.optional)
        carried = unknown.intersection(self.carried)
        unknown -= carried
        misshapen = set()
        for name in self.shapes.keys() & pushed.keys():
            if pushed[name] != self.shapes[name]:
                misshapen.add(name)

        self._refuse_any(version, "without", missing)
        self._refuse_any(version, "unknown", unknown)
        self._refuse_any(version, "that no learner holds", carried)
        self._refuse_any(version, "of another shape", misshapen)

    def _refuse_any(
        self,
        version: int,
        fault: str,
        names: Collection[str],
    ) -> None:
        if names:
            log.error(
                "weights %d: tensors %s: %s", version, fault, ", ".join(sorted(names))
            )
            shown = ", ".join(sorted(names)[:NAMES_SHOWN])
            num_expected = len(self.shapes)
            raise UserError(
                f"weights {version}: expected the {num_expected} tensors of {self.source}, "
                f"got {len(names)} {fault}: {shown}; {self.remedy}"
            )


def check_bytes(manifest: WeightManifest, tensors: Tensors) -> None:
    """Raise a UserError unless these are the bytes that the manifest describes. It takes 0.1 s per GB."""
    digest = checksum(tensors)
    if digest != manifest.checksum:
        expected = manifest.checksum[:DIGITS_SHOWN]
        got = digest[:DIGITS_SHOWN]
        raise UserError(
            f"weights {manifest.version}: expected checksum {expected}, got {got}; publish again"
        )


def whole_weights(
    layout: Layout,
    vision_frozen: bool,
) -> ExpectedPush:
    """A push of all that a learner holds; the vision encoder may be left out if it is frozen.

    Args:
        layout: of the start policy's checkpoint.
        vision_frozen: whether the vision encoder is not trained.
    """
    optional = list(layout.tied)
    if vision_frozen:
        optional += filter(is_vision_tower, layout.shapes)
    return ExpectedPush(
        layout.shapes,
        optional,
        source="the start policy",
        remedy="send names by common.checkpoint.layout",
        carried=layout.carried,
    )


def adapter_alone(shapes: Mapping[str, Shape]) -> ExpectedPush:
    """A push of one adapter, whose tensors have these shapes by peft name."""
    return ExpectedPush(
        shapes,
        optional=(),
        source="an adapter",
        remedy="learner and engine differ in tuning",
    )
