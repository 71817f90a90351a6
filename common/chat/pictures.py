"""The one place where a picture's size is decided, for the engine, the learner and judges alike.

    min_pixels, max_pixels ─┬─ a processor that takes them (Qwen-VL)   gets them as its `size` with every call
                            └─ any other (LLaVA, InternVL, Pixtral)    gets pictures that `fitted` has resized before
    mm_processor_kwargs ───── go along with every call

Engines expand a picture with the same processor, so they get the same pictures and the same arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import ceil, floor, sqrt
from typing import Any

from PIL import Image

from common.config.model import Pictures
from common.errors import UserError

_SCOPE = "images_kwargs"
_EDGES = ("shortest_edge", "longest_edge")
"""Where Qwen's processors have their least and largest number of pixels, whatever the names say."""
_FIXED = frozenset(
    {
        "return_tensors",
        "device",
        "data_format",
        "input_data_format",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
    }
)
"""Arguments that are ours to give, or that noise and crops read from the processor's own file."""


class PictureSizes:
    """What is done to pictures before a model's processor sees them, and what the processor is told.

    Args:
        settings: the limits.
        image_processor: of the model.
        section: the section of the settings, for messages, such as `model`.

    Attributes:
        takes_limits: whether the processor itself takes a least and a largest number of pixels.
        largest: pixels of the largest picture that the model gets to see; None where its processor has no such limit.

    Raises:
        UserError: an argument is none of this processor's, or says another size than the limits.
    """

    def __init__(self, settings: Pictures, image_processor: Any, section: str) -> None:
        self._settings = settings
        self._section = section
        self._known = _arguments_of(image_processor)
        self.takes_limits = {"min_pixels", "max_pixels"} <= self._known
        self._arguments = self._checked(settings.mm_processor_kwargs, image_processor)
        if self.takes_limits and self._has_limits:
            self._arguments["size"] = self._size(image_processor)
        self.largest = self._largest(image_processor)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of every call of the processor. A new dict: transformers takes entries out of it."""
        return copy.deepcopy(self._arguments)

    @property
    def identity(self) -> str:
        """Equal for settings that make the same pixels; empty where nothing was set."""
        if not self._arguments and not self._has_limits:
            return ""
        settings = self._settings
        return f"{settings.min_pixels} {settings.max_pixels} {sorted(self._arguments.items())}"

    def fitted(self, picture: Image.Image) -> Image.Image:
        """The picture with as many pixels as the limits allow; as it is where the processor sees to that."""
        if self.takes_limits or not self._has_limits:
            return picture
        settings = self._settings
        size = resized(picture.size, settings.min_pixels, settings.max_pixels)
        if size == picture.size:
            return picture
        return picture.resize(size, Image.Resampling.BICUBIC)

    @property
    def remedy(self) -> str:
        """What a user can set when a picture has too many tokens."""
        first = f"lower {self._section}.max_pixels"
        if self.takes_limits:
            return first
        return f"{first}, give the processor a limit of its own in {self._section}.mm_processor_kwargs"

    @property
    def _has_limits(self) -> bool:
        return (self._settings.min_pixels, self._settings.max_pixels) != (None, None)

    def _checked(
        self, arguments: Mapping[str, Any], image_processor: Any
    ) -> dict[str, Any]:
        """The arguments without the scope that vLLM and transformers may have them in."""
        key = f"{self._section}.mm_processor_kwargs"
        flat = {name: value for name, value in arguments.items() if name != _SCOPE}
        scoped = arguments.get(_SCOPE, {})
        if not isinstance(scoped, Mapping):
            raise UserError(
                f"{key}.{_SCOPE}: expected a table of arguments, got {scoped!r}; correct it"
            )
        flat |= scoped
        for name in flat:
            if name in self._known - _FIXED:
                continue
            known = ", ".join(sorted(self._known - _FIXED))
            raise UserError(
                f"{key}: expected arguments of {type(image_processor).__name__} ({known}), got {name}; correct or "
                "remove it"
            )
        sizes = {"size", "min_pixels", "max_pixels"}.intersection(flat)
        if sizes and self.takes_limits and self._has_limits:
            raise UserError(
                f"{key}: expected no {', '.join(sorted(sizes))} beside min_pixels and max_pixels of {self._section}, "
                "got both; remove one"
            )
        return copy.deepcopy(flat)

    def _largest(self, image_processor: Any) -> int | None:
        if not self.takes_limits:
            return None
        size = dict(image_processor.size)
        given = self._arguments.get("size")
        if isinstance(given, Mapping):
            size |= given
        return self._arguments.get("max_pixels", size.get(_EDGES[1]))

    def _size(self, image_processor: Any) -> dict[str, int]:
        shortest, longest = _EDGES
        low, high = self._settings.min_pixels, self._settings.max_pixels
        size = dict(image_processor.size)
        size = {shortest: low or size[shortest], longest: high or size[longest]}
        # The processor's own least size must not lie above the largest that was asked for.
        if high is not None:
            size[shortest] = min(size[shortest], high)
        if low is not None:
            size[longest] = max(size[longest], low)
        return size


def resized(
    size: tuple[int, int], min_pixels: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """Width and height of the same shape with a number of pixels within limits, as near as whole pixels come."""
    width, height = size
    area = width * height
    if max_pixels is not None and area > max_pixels:
        scale = sqrt(max_pixels / area)
        width = max(1, floor(width * scale))
        height = max(1, floor(height * scale))
        # A strip whose short side is one pixel has to give way on its long one.
        return min(width, max_pixels), min(height, max_pixels)
    if min_pixels is not None and area < min_pixels:
        scale = sqrt(min_pixels / area)
        return ceil(width * scale), ceil(height * scale)
    return size


def _arguments_of(image_processor: Any) -> frozenset[str]:
    """Names of the arguments that a call of an image processor takes."""
    arguments = getattr(image_processor, "valid_kwargs", None)
    return frozenset(getattr(arguments, "__annotations__", {}))
