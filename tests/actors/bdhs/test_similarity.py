"""The encoder of the BDHS filter: a real sentence-transformers model, tiny and random, on disk.

Runs where the extra `similarity` is installed: with its scikit-learn every import of transformers takes seconds more.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from actors.bdhs.similarity import make_similarity
from common.errors import UserError

TEXTS = ("a red circle", "a blue square above", "circle")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `SentenceTransformer` loads: one BERT layer and the mean over tokens."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("encoder")
    words = sorted(set(" ".join(TEXTS).split()))
    vocabulary = [*SPECIAL_TOKENS, *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    bert = folder / "bert"
    BertModel(config).save_pretrained(bert)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(bert)
    # Without a normalisation layer: `EmbeddingSimilarity` normalises.
    modules = [Transformer(str(bert)), Pooling(16)]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def test_embeddings_give_the_cosine_of_mean_hidden_states(encoder: Path) -> None:
    """Against transformers alone, one text at a time (so without padding)."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval()
    means = []
    with torch.no_grad():
        for text in TEXTS:
            output = model(**tokenizer(text, return_tensors="pt"))
            means.append(output.last_hidden_state[0].mean(0))
    pairs = []
    expected = []
    for left, right in ((0, 1), (1, 2), (2, 2)):
        pairs.append((TEXTS[left], TEXTS[right]))
        cosine = torch.cosine_similarity(
            means[left],
            means[right],
            dim=0,
        )
        expected.append(float(cosine))
    similarity = make_similarity(str(encoder))
    assert similarity(pairs) == pytest.approx(expected, abs=1e-5)
    assert similarity.name == str(encoder)
    assert max(expected[:2]) < 0.999, (
        "different texts must differ, or this test sees nothing"
    )


def test_a_folder_that_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    message = "expected a sentence-transformers model, got"
    with pytest.raises(UserError, match=message) as error:
        make_similarity(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_as_the_project_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text())["project"]
    (needed,) = project["optional-dependencies"]["similarity"]
    with pytest.raises(UserError, match=re.escape(f"pip install '{needed}'")):
        make_similarity("any")
