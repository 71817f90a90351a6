"""Importers of published preference sets: their files in, our records out, every unused row counted.

    readers.read_rows ── rows ──▶ NAME.convert ── Drafts ──▶ build.outcomes ──▶ records or Dropped
    (JSON, parquet, …)            (knows the columns)        (checks, images)

Each data set has one small file that knows its columns. Streaming, safe images, limits and counting are shared. Data
sets are untrusted: nothing is unpickled, evaluated or fetched, and no path leaves the folder it was given.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.importers.base import Importer

NAMES = {
    "ha_dpo": "HA-DPO: pope_data.json and desc_data.json, Visual Genome images",
    "llama_factory": "LLaMA-Factory's sharegpt preference format",
    "llava_human_preference": "LLaVA-Human-Preference-10K (LLaVA-RLHF)",
    "llava_instruct": "LLaVA-Instruct for SFT: prompts with references, not pairs",
    "mdpo": "mDPO's 10k of VLFeedback",
    "mm_rlhf": "MM-RLHF, image rows",
    "mmpr": "MMPR: meta.json and its annotation files",
    "ms_swift": "ms-swift's preference format",
    "opa_dpo": "OPA-DPO, saved with datasets.save_to_disk",
    "povid": "POVID's injected hallucinations",
    "prompts": "prompts of your own: JSON lines, parquet, save_to_disk, an image folder",
    "rlaif_v": "RLAIF-V, 83k pairs",
    "rlhf_v": "RLHF-V, human-corrected answers",
    "trl": "TRL's VLM preference format, also what `export` writes",
    "vlfeedback": "VLFeedback: every pair of rated answers",
}
"""Importer name -> what it reads, for `--help`. Importing this package loads no importer and nothing heavy."""


def load(name: str) -> Importer:
    """The importer with a name of `NAMES`."""
    module = import_module(f"common.importers.{name}")
    importer: Importer = module.IMPORTER
    return importer
