"""Whether the weights beside a configuration are there, and have the embedding that it says."""

from __future__ import annotations

from common.chat.directory import ModelDirectory
from common.errors import UserError
from common.loading import check_weights
from common.weights import EMBEDDING, TOWER_MODEL, checkpoint_shapes, tensor_names


def check_embedding(directory: ModelDirectory) -> None:
    """Compare the embedding's rows with the configuration's vocabulary; only the headers of weight files are read.

    Raises:
        UserError: files are missing or broken, have names that engines cannot read, or the embedding has another size.
    """
    check_weights(directory.model_path, directory.key)
    _check_names(directory)
    # Families differ in how they name it; whoever loads one of another name says what is wrong with its shape.
    shape = checkpoint_shapes(directory.model_path).get(EMBEDDING)
    if shape is None or shape[0] == directory.num_embeddings:
        return
    raise UserError(
        f"{directory.where}: expected an embedding of vocab_size = {directory.num_embeddings} rows, as config.json "
        f"says, got {shape[0]} in the weights; correct vocab_size in config.json, or copy the checkpoint again"
    )


def _check_names(directory: ModelDirectory) -> None:
    """Refuse LLaVA's weights as `save_pretrained` of transformers 5 names them: vLLM reads the hub's names alone."""
    if directory.config.model_type not in ("llava", "llava_next"):
        return
    for name in tensor_names(directory.model_path):
        tower = name.removeprefix("model.")
        if tower.startswith("vision_tower.embeddings."):
            raise UserError(
                f"{directory.where}: expected weights by the hub's names, which engines read, got {name}; save it "
                f"with {TOWER_MODEL} in the place of vision_tower."
            )
