"""Where the parts of a vision-language model are: the one answer to "is this the vision tower?".

    vision      the vision tower (CLIP, SigLIP, Qwen's `visual`, …), without a projector that sits inside of it
    projector   what maps its states to token embeddings: LLaVA's behind the tower, Qwen's mergers inside of it
    language    the decoder, its embeddings and its head

`part_of` answers by name, for files, pushes and adapters, where there is no module to look at. The functions on a model
answer by its structure, through transformers' own `get_encoder` and `get_decoder`. A test checks that both agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from common.config import Lora

Part = Literal["language", "projector", "vision"]

VISION_TOWERS = (
    "vision_tower",
    "visual",
    "vision_model",
    "vision_encoder",
    "image_tower",
)
"""Module names of vision towers: the list in transformers' `PreTrainedModel.get_encoder`, which new models keep to."""
PROJECTORS = ("multi_modal_projector", "merger", "connector", "aligner")
"""Module names of projectors begin with one of these; Qwen3-VL also has a `deepstack_merger_list`."""
IMAGE_SEPARATORS = ("image_newline",)
"""Learned rows that LLaVA-NeXT puts between an image's projected rows."""


def part_of(name: str) -> Part:
    """The part that a module or parameter is in, by its dotted name in transformers or on the hub.

    Prefixes of wrappers such as peft's do not matter.
    """
    pieces = name.split(".")
    # Projectors first: Qwen's are inside of the tower, and no tower is inside of a projector.
    if any(_names_projector(piece) for piece in pieces):
        return "projector"
    if any(piece in VISION_TOWERS for piece in pieces):
        return "vision"
    return "language"


def is_vision_tower(name: str) -> bool:
    """Whether a name lies in the vision tower; a projector inside of the tower does not count."""
    return part_of(name) == "vision"


def is_vision_side(name: str) -> bool:
    """Whether a name lies in the vision tower or the projector, image separators included."""
    return part_of(name) != "language"


def vision_tower(model: Any) -> Any:
    """The vision tower of a Hugging Face model, with the projector inside of it where the family has it there.

    Raises:
        ValueError: the model has none.
    """
    tower = model.get_encoder(modality="image")
    # transformers answers with the model itself where it finds no encoder.
    if tower is model or tower is model.base_model:
        raise ValueError(
            f"expected a vision-language model, got {type(model).__name__} without a vision tower; "
            "use a model with get_image_features"
        )
    return tower


def language_model(model: Any) -> Any:
    """The decoder of a Hugging Face vision-language model, without its head."""
    return model.get_decoder()


def vision_tower_parameters(model: Any) -> Iterator[Any]:
    """Parameters of the vision tower, without those of a projector inside of it."""
    for name, parameter in vision_tower(model).named_parameters():
        if part_of(name) != "projector":
            yield parameter


def vision_side_parameters(model: Any) -> Iterator[Any]:
    """Parameters of vision tower and projector: all of the model's body that the decoder does not have."""
    # By identity: comparing tensors compares their values.
    language = {id(parameter) for parameter in language_model(model).parameters()}
    for parameter in model.base_model.parameters():
        if id(parameter) not in language:
            yield parameter


def has_projector_inside(model: Any) -> bool:
    """Whether the projector sits inside of the vision tower (Qwen), not behind it (LLaVA)."""
    parameters = dict(vision_tower(model).named_parameters())
    return any(part_of(name) == "projector" for name in parameters)


def lora_targets(model: Any, tuning: Lora) -> list[str]:
    """Full names of the linear layers that carry adapters: `target_modules` on the language side, all on the others."""
    from torch import nn

    targets = []
    for name, module in model.named_modules():
        side = part_of(name)
        if side not in tuning.sides:
            continue
        if not isinstance(module, nn.Linear):
            continue
        leaf = name.rpartition(".")[2]
        if side != "language" or leaf in tuning.target_modules:
            targets.append(name)
    return targets


def _names_projector(piece: str) -> bool:
    if piece in IMAGE_SEPARATORS:
        return True
    return piece.startswith(PROJECTORS) or "merger" in piece
