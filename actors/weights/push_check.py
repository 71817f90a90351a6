"""The one check of a push, of whole weights or of an adapter, before anything is changed.

A push is refused when a tensor is missing, unknown or of another shape, or when the bytes are not those that the
manifest describes. vLLM itself would load part of a model without a word: it fuses layers, so one missing projection
goes wrong in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.errors import UserError
from common.model_parts import is_vision_tower
from common.protocols import Tensors
from common.records import WeightManifest
from common.weights import BFLOAT16, LM_HEAD, Shape, checksum

NAMES_SHOWN = 3
"""Names of tensors in an error message."""
DIGITS_SHOWN = 16
"""Hexadecimal digits of a checksum in an error message."""


@dataclass(frozen=True, slots=True)
class ExpectedPush:
    """What a push must consist of.

    Attributes:
        shapes: hub name (or peft name) of every tensor -> its shape.
        optional: names that may be left out or added.
        source: whose tensors these are, for the error message.
        remedy: what to do about a wrong push, for the error message.
    """

    shapes: Mapping[str, Shape]
    optional: Collection[str]
    source: str
    remedy: str

    def check(
        self,
        manifest: WeightManifest,
        tensors: Tensors,
    ) -> None:
        """Refuse a push that does not fit the manifest, the model or its configuration.

        Raises:
            UserError: names, shapes or the checksum differ.
        """
        pushed = {}
        for name, array in tensors.items():
            pushed[name.removesuffix(BFLOAT16)] = tuple(array.shape)

        missing = self.shapes.keys() - pushed.keys()
        missing -= set(self.optional)
        unknown = pushed.keys() - self.shapes.keys()
        unknown -= set(self.optional)
        misshapen = set()
        for name in self.shapes.keys() & pushed.keys():
            if pushed[name] != self.shapes[name]:
                misshapen.add(name)

        self._refuse_any(manifest, "without", missing)
        self._refuse_any(manifest, "unknown", unknown)
        self._refuse_any(manifest, "of another shape", misshapen)

        # Last: hashing reads every byte, and a wrong set of names says more.
        digest = checksum(tensors)
        if digest != manifest.checksum:
            expected = manifest.checksum[:DIGITS_SHOWN]
            got = digest[:DIGITS_SHOWN]
            raise UserError(
                f"weights {manifest.version}: expected checksum {expected}, got {got}; publish again"
            )

    def _refuse_any(
        self,
        manifest: WeightManifest,
        fault: str,
        names: Collection[str],
    ) -> None:
        if names:
            shown = ", ".join(sorted(names)[:NAMES_SHOWN])
            num_expected = len(self.shapes)
            raise UserError(
                f"weights {manifest.version}: expected the {num_expected} tensors of {self.source}, "
                f"got {len(names)} {fault}: {shown}; {self.remedy}"
            )


def whole_weights(
    shapes: Mapping[str, Shape],
    vision_frozen: bool,
) -> ExpectedPush:
    """A push of all parameters; the vision encoder may be left out if it is frozen.

    Args:
        shapes: the start policy's tensors by hub name.
        vision_frozen: whether the vision encoder is not trained.
    """
    # Checkpoints of tied models hold no output head, although every push carries one.
    optional = [LM_HEAD] if LM_HEAD not in shapes else []
    if vision_frozen:
        optional += filter(is_vision_tower, shapes)
    return ExpectedPush(
        shapes,
        optional,
        source="the start policy",
        remedy="send names by common.weights.hub_name",
    )


def adapter_alone(shapes: Mapping[str, Shape]) -> ExpectedPush:
    """A push of one adapter, whose tensors have these shapes by peft name."""
    return ExpectedPush(
        shapes,
        optional=(),
        source="an adapter",
        remedy="learner and engine differ in tuning",
    )
