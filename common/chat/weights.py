"""Whether the weights beside a configuration are there, and have the embedding that it says."""

from __future__ import annotations

from common.chat.directory import ModelDirectory
from common.errors import UserError
from common.loading import check_weights
from common.weights import EMBEDDING, checkpoint_shapes


def check_embedding(directory: ModelDirectory) -> None:
    """Compare the embedding's rows with the configuration's vocabulary; only the headers of weight files are read.

    Raises:
        UserError: files are missing or broken, or the embedding has another size.
    """
    check_weights(directory.model_path, directory.key)
    # Families differ in how they name it; whoever loads one of another name says what is wrong with its shape.
    shape = checkpoint_shapes(directory.model_path).get(EMBEDDING)
    if shape is None or shape[0] == directory.num_embeddings:
        return
    raise UserError(
        f"{directory.where}: expected an embedding of vocab_size = {directory.num_embeddings} rows, as config.json "
        f"says, got {shape[0]} in the weights; correct vocab_size in config.json, or copy the checkpoint again"
    )
