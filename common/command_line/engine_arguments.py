"""Any vLLM engine argument, as a table (`rollout.engine.extra`): which names it takes, and why not the others.

vLLM's names are read off its source, because importing it takes seconds and the controller does without.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ARGUMENT_CLASSES = ("EngineArgs", "AsyncEngineArgs")
KEY_OF = {
    "model": "model.path",
    "tokenizer": "model.path",
    "hf_config_path": "model.path",
    "dtype": "model.dtype",
    "max_model_len": "model.max_length",
    "mm_processor_kwargs": "model.mm_processor_kwargs",
    "limit_mm_per_prompt": "model.max_images",
    "enable_lora": "model.tuning",
    "max_loras": "model.tuning",
    "max_lora_rank": "model.tuning",
    "seed": "run.seed",
    "async_scheduling": "rollout.deterministic",
    "max_num_seqs": "engine.max_num_seqs",
    "max_num_batched_tokens": "engine.max_num_batched_tokens",
    "kv_cache_memory_bytes": "engine.kv_cache_bytes",
    "kv_cache_dtype": "engine.kv_cache_dtype",
    "enable_prefix_caching": "engine.enable_prefix_caching",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "pipeline_parallel_size": "engine.tensor_parallel_size",
    "prefill_context_parallel_size": "engine.tensor_parallel_size",
    "data_parallel_size": "rollout.num_workers",
    "nnodes": "rollout.num_workers",
    "block_size": "engine.block_size",
    "enforce_eager": "engine.enforce_eager",
}
"""vLLM's argument -> our key that sets it."""
FIXED = frozenset(
    {
        "distributed_executor_backend",
        "generation_config",
        "hf_overrides",
        "load_format",
        "enable_mm_embeds",
        "logprobs_mode",
        "weight_transfer_config",
        "enable_log_requests",
    }
)
"""What loading, sampling, scoring and weight pushes rest on; loaders that read pickles are among it."""
CODE_ENDINGS = ("_cls", "_plugin", "module_path", "logits_processors")
"""Names that end so take code, by its name or its file."""
CODE_IN_TABLES = "model_class_overrides"


@cache
def argument_names() -> frozenset[str]:
    """Names of vLLM's engine arguments; empty where vLLM is not installed."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    source = Path(spec.origin).parent / "engine" / "arg_utils.py"
    names: set[str] = set()
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.ClassDef):
            continue
        if statement.name in ARGUMENT_CLASSES:
            names.update(_fields(statement))
    return frozenset(names)


def _fields(definition: ast.ClassDef) -> Iterator[str]:
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
            # Private ones are set by vLLM's server.
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield target.id


def check_extra(extra: Mapping[str, Any]) -> None:
    """Refuse what is no argument of vLLM's, what another key sets, and what would run code.

    Raises:
        ValueError: with a line for the user.
    """
    for name, value in extra.items():
        _check_safe(name, value)
        if name in KEY_OF:
            raise ValueError(
                f"expected arguments that have no key of their own, got {name}; set {KEY_OF[name]}"
            )
        if name in FIXED:
            raise ValueError(
                f"expected arguments that loading, sampling and pushes do not rest on, got {name}; leave it out"
            )
        _check_known(name)


def _check_safe(name: str, value: Any) -> None:
    """By the names of inner tables, too."""
    if name == "trust_remote_code":
        raise ValueError(
            "expected no trust_remote_code, because code of a model directory is never run (safe by default); leave "
            "it out, and take a model that vLLM knows"
        )
    if name == "hf_token":
        raise ValueError(
            "expected no hf_token, because secrets come from the environment; set HF_TOKEN there"
        )
    if name.endswith(CODE_ENDINGS) or name == CODE_IN_TABLES:
        raise ValueError(
            f"expected no argument that names code (safe by default), got {name}; leave it out"
        )
    if isinstance(value, Mapping):
        for inner_name, inner_value in value.items():
            _check_safe(str(inner_name), inner_value)


def _check_known(name: str) -> None:
    names = argument_names()
    # Without vLLM here, the engine itself refuses them.
    if not names or name in names:
        return
    near = difflib.get_close_matches(name, sorted(names), 3)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "see vLLM's engine arguments"
    )
    raise ValueError(f"expected names of vLLM's engine arguments, got {name}; {hint}")
