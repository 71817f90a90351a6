"""The cause of a failure of vLLM, by what its processes log."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from actors.engine.causes import OTHER_REMEDY, REMEDIES, cause_of, raised_in, remedy_of

SOURCES = (
    "model_executor/models/registry.py",
    "config/model.py",
    "distributed/utils.py",
    "v1/core/kv_cache_utils.py",
    "v1/executor/multiproc_executor.py",
    "v1/worker/utils.py",
)
NOT_VLLMS = {"ended without a word", "out of memory"}
"""Ours, and torch's."""
WORKER_RECORD = """WorkerProc failed to start.
Traceback (most recent call last):
  File "executor.py", line 930, in worker_main
    worker = WorkerProc(*args, **kwargs)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "worker.py", line 90, in __init__
    raise ValueError(
ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory utilization \
(0.85, 67.3 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.
"""
CORE_RECORD = """EngineCore failed to start.
Traceback (most recent call last):
  File "core.py", line 1500, in run_engine_core
    engine_core = EngineCoreProc(*args)
Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
"""
CORE_FAILED = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"
)


def test_the_innermost_process_says_it() -> None:
    """Of a split engine the worker fails, then the core that waits for it, then the call."""
    cause = cause_of(CORE_FAILED, [WORKER_RECORD, CORE_RECORD])
    assert cause == (
        "Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory utilization "
        "(0.85, 67.3 GiB)"
    )
    assert "lower engine.gpu_memory_utilization" in remedy_of(cause)


def test_a_process_that_is_killed_says_nothing() -> None:
    killed = RuntimeError(str(CORE_FAILED).replace("1}", "-9}"))
    cause = cause_of(killed, [CORE_RECORD])
    assert cause == "its process ended without a word ('EngineCore_DP0': -9)"
    assert "killed" in remedy_of(cause)
    died = "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."
    assert cause_of(CORE_FAILED, [died, CORE_RECORD]) == died.rstrip(".")


def test_an_error_of_this_process_is_its_own_cause() -> None:
    message = (
        "1 validation error for ModelConfig\n  Value error, Model architectures ['X'] are not supported for now. "
        "Supported architectures: dict_keys([…]) [type=value_error, input_value=ArgsKwargs(())]"
    )
    cause = cause_of(ValueError(message), [CORE_RECORD])
    assert cause == "Model architectures ['X'] are not supported for now"
    assert cause_of(KeyError(), []) == "KeyError"
    long = cause_of(RuntimeError("a b\n" * 500), [])
    assert "\n" not in long and len(long) < 500
    assert remedy_of(long) == OTHER_REMEDY


def test_messages_of_several_lines_are_kept_whole() -> None:
    record = 'x\nTraceback …\n  File "a", line 1, in f\n    g()\nKeyError: one\n  two\n'
    assert raised_in(record) == "KeyError: one\n  two"
    assert raised_in("no traceback\n") == "no traceback"


def test_the_words_are_still_vllms() -> None:
    """An error that is worded otherwise would lose its remedy in silence."""
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    text = ""
    for file in SOURCES:
        text += (Path(spec.origin).parent / file).read_text()
    # Messages are broken over lines of code.
    joined = " ".join(re.sub(r'["(]|\bf"', " ", text).split())
    for words in REMEDIES:
        if words not in NOT_VLLMS:
            assert words in joined, words
