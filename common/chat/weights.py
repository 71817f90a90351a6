"""Whether the weights beside a configuration are there, and have the embedding that it says."""

from __future__ import annotations

from common.chat.directory import ModelDirectory
from common.checkpoint.files import tensor_shapes
from common.errors import UserError
from common.loading import check_weights

_EMBEDDING = ".embed_tokens.weight"


def check_embedding(directory: ModelDirectory) -> None:
    """Compare the embedding's rows with the configuration's vocabulary; only the headers of weight files are read.

    Raises:
        UserError: files are missing or broken, or the embedding has another size.
    """
    check_weights(directory.model_path, directory.key)
    # Families differ in how they name it; whoever loads one of another name says what is wrong with its shape.
    for name, shape in tensor_shapes(directory.model_path).items():
        if name.endswith(_EMBEDDING) and shape[0] != directory.num_embeddings:
            raise UserError(
                f"{directory.where}: expected an embedding of vocab_size = {directory.num_embeddings} rows, as "
                f"config.json says, got {shape[0]} in the weights; correct vocab_size in config.json, or copy the "
                "checkpoint again"
            )
