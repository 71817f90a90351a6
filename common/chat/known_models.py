"""Whether the pinned libraries know what a model folder names: its family, its processor, its class in the engine.

What a folder says in its own code (`auto_map`) is never run, nor asked about on a terminal.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from common.errors import UserError

_PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
_ENGINE_TABLE = "model_executor/models/registry.py"
_TABLE_NAME = "_MULTIMODAL_MODELS"
_REMEDY = "give a folder of the same model for transformers (on the hub often with -hf at the end of its name)"


class NamedClass(NamedTuple):
    """A class that a file of a model folder names."""

    name: str
    field: str
    file: str


def check_family(path: Path, where: str) -> None:
    """Refuse a family that transformers has no class for; `config.json` is there.

    Raises:
        UserError: it is newer than the pinned transformers, has its code beside it, or answers nothing about images.
    """
    config = _json(path / "config.json")
    # Whoever loads it says that it is no JSON.
    if not config:
        return
    family = config.get("model_type")
    if not isinstance(family, str):
        raise UserError(
            f"{where}: expected model_type in config.json, got none; copy the model's config.json again"
        )
    if family not in CONFIG_MAPPING:
        code = config.get("auto_map")
        if isinstance(code, dict) and code:
            raise UserError(
                f"{where}: expected a model of transformers' own classes, got model_type {family} with code of its own "
                f"({next(iter(code.values()))}), which is never run (no trust_remote_code); {_REMEDY}"
            )
        version = config.get("transformers_version")
        written = f" written by transformers {version}" if version else ""
        raise UserError(
            f"{where}: expected a model_type that transformers {transformers.__version__} knows, got {family}{written}"
            "; use a model of a family that it has"
        )
    if family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"{where}: expected a vision-language model, got {family}, which is none (AutoModelForImageTextToText); "
            "give the folder of one"
        )


def check_processor_is_known(path: Path, where: str) -> None:
    """Refuse a folder whose processor is a class that the pinned transformers does not have (UserError)."""
    for named in _processor_classes(path):
        if _is_known(named.name):
            continue
        code = _json(path / named.file).get("auto_map")
        if code:
            raise UserError(
                f"{where}: expected a processor of transformers' own classes, got {named.field} = {named.name} with "
                f"code of its own ({named.file}), which is never run (no trust_remote_code); {_REMEDY}"
            )
        raise UserError(
            f"{where}: expected a processor that transformers {transformers.__version__} knows, got {named.field} = "
            f"{named.name} in {named.file}; correct it, or use a model whose processor it has"
        )


def check_engine_knows(config: Any, processor: Any, where: str) -> list[str]:
    """Compare the architecture with those that the installed vLLM has, which is not imported for it.

    Returns:
        Warnings.

    Raises:
        UserError: vLLM cannot run this architecture, or none is named.
    """
    architectures = config.architectures or ()
    if not architectures:
        names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type]
        raise UserError(
            f"{where}: expected architectures in config.json, by which vLLM picks its class, got none; set "
            f'"architectures": ["{names}"]'
        )
    known = engine_architectures()
    name = architectures[0]
    if known is None or name in known:
        return []
    model_class = getattr(transformers, name, None)
    counts_tokens = hasattr(processor, "_get_num_multimodal_tokens")
    if model_class is None or not counts_tokens:
        raise UserError(
            f"{where}: expected an architecture that the installed vLLM runs, got {name} in config.json; use a model "
            "of a family that it has"
        )
    return [
        f"{where}: vLLM has no class of its own for {name} and runs that of transformers; none of the families that "
        "are tested here is run so"
    ]


@cache
def engine_architectures() -> frozenset[str] | None:
    """The architectures of vLLM's own table of models that see; None where there is no vLLM, or its table moved.

    The file is read, not run: importing vLLM takes seconds.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / _ENGINE_TABLE
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(
            statement.value, ast.Dict
        ):
            continue
        targets = [ast.unparse(target) for target in statement.targets]
        if targets == [_TABLE_NAME]:
            keys = statement.value.keys
            names = [key.value for key in keys if isinstance(key, ast.Constant)]
            return frozenset(map(str, names))
    return None


def _processor_classes(path: Path) -> Iterator[NamedClass]:
    for file in _PROCESSOR_FILES:
        content = _json(path / file)
        inner = content.get("image_processor")
        for fields in (content, inner if isinstance(inner, dict) else {}):
            for field in ("processor_class", "image_processor_type"):
                name = fields.get(field)
                if isinstance(name, str):
                    yield NamedClass(name, field, file)


def _is_known(name: str) -> bool:
    # Older exports name the fast class, which is the only one today.
    return any(
        hasattr(transformers, candidate)
        for candidate in (name, name.removesuffix("Fast"))
    )


def _json(file: Path) -> dict[str, Any]:
    """The fields of a file, none where it is not there or no JSON: whoever loads it says so."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
