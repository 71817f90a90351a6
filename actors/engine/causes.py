"""Why vLLM failed, in one line, although it failed in a process of its own.

vLLM's processes log what went wrong, and the one that is asked says no more than "see root cause above". So all of
them log errors into a file in memory as well, which ends with the process that reads it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import UserError

LOGGING_CONFIG = "VLLM_LOGGING_CONFIG_PATH"
"""vLLM's variable for a file with the settings of Python's logging; its processes hand it on."""
MAX_SHOWN = 400
"""Characters of a cause."""
RECORD = "\x1e"
"""Stands before every record of the file."""
FAMILY_REMEDY = (
    "take a model of a family that this vLLM knows, or look at architectures in "
    "config.json"
)
SPLIT_REMEDY = (
    "set engine.tensor_parallel_size and num_gpus to a number that divides it"
)
CACHE_REMEDY = (
    "raise engine.kv_cache_bytes (where that is 0: engine.gpu_memory_utilization), split "
    "the engine over more GPUs (engine.tensor_parallel_size with num_gpus), or lower "
    "model.max_length"
)
ROOM_REMEDY = (
    "lower engine.gpu_memory_utilization, engine.max_num_batched_tokens or "
    "engine.max_num_seqs, or split the engine over more GPUs "
    "(engine.tensor_parallel_size with num_gpus)"
)
OTHERS_REMEDY = "free that memory, lower engine.gpu_memory_utilization, or set engine.kv_cache_bytes"
KILLED_REMEDY = "look whether it was killed for want of memory (dmesg)"
REMEDIES = {
    "are not supported for now": FAMILY_REMEDY,
    "must be divisible by tensor parallel size": SPLIT_REMEDY,
    "is not divisible by": SPLIT_REMEDY,
    "No available memory for the cache blocks": CACHE_REMEDY,
    "larger than the available KV cache": CACHE_REMEDY,
    "on startup is less than": OTHERS_REMEDY,
    "out of memory": ROOM_REMEDY,
    "died unexpectedly": KILLED_REMEDY,
    "ended without a word": KILLED_REMEDY,
    "is greater than the derived max_model_len": "lower model.max_length",
}
"""Words of vLLM and torch -> what to do."""
OTHER_REMEDY = "the engine's log has the rest (SIGHTLINE_DEBUG=1)"
_SECONDARY = "root cause"
_VALIDATION = re.compile(
    r"validation errors? for .*?(?:Value error|Assertion failed), (.*?) \[type=",
    re.DOTALL,
)
_LAST_FRAME = re.compile(r"^  File .*$", re.MULTILINE)
_PLAIN_TYPE = re.compile(r"^(?:ValueError|RuntimeError|Exception): ")
_NEXT_SENTENCE = re.compile(r"\. (?=[A-Z])")
_FAILED_PROCESSES = re.compile(r"Failed core proc\(s\): \{(.+?)\}")


class _ErrorFile:
    """The file in memory, of this process and those that it starts."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._start = 0

    def open(self) -> str:
        """Make it, and return its path for other processes."""
        self._descriptor = os.memfd_create("sightline-errors")
        return _path_of(self._descriptor)

    def start_here(self) -> None:
        """Leave out of `records` what was logged up to now."""
        if self._descriptor is not None:
            self._start = os.fstat(self._descriptor).st_size

    def records(self) -> list[str]:
        """What was logged since then, the oldest first."""
        if self._descriptor is None:
            return []
        size = os.fstat(self._descriptor).st_size
        content = os.pread(self._descriptor, size - self._start, self._start)
        return content.decode(errors="replace").split(RECORD)[1:]


_errors = _ErrorFile()


def logging_config() -> str:
    """The file of logging settings that makes vLLM's processes log errors for this one; a user's own file stays."""
    current = os.environ.get(LOGGING_CONFIG, "")
    is_users = not current.startswith("/proc/")
    is_vllms_process = multiprocessing.parent_process() is not None
    if current and (is_users or is_vllms_process):
        return current
    settings = json.dumps(_logging_settings(_errors.open()))
    descriptor = os.memfd_create("sightline-logging")
    os.write(descriptor, settings.encode())
    return _path_of(descriptor)


def _logging_settings(path: str) -> dict[str, object]:
    environment = os.environ
    level = environment.get("VLLM_LOGGING_LEVEL", "ERROR")
    stream = environment.get("VLLM_LOGGING_STREAM", "ext://sys.stdout")
    console = {"class": "logging.StreamHandler", "formatter": "line", "stream": stream}
    # Python's own classes: vLLM's subprocesses need not find ours.
    causes = {
        "class": "logging.FileHandler",
        "formatter": "record",
        "level": "ERROR",
        "filename": path,
        "delay": True,
        "encoding": "utf-8",
    }
    line = {"format": "%(levelname)s %(asctime)s [%(name)s] %(message)s"}
    vllm = {"handlers": ["console", "causes"], "level": level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line, "record": {"format": f"{RECORD}%(message)s"}},
        "handlers": {"console": console, "causes": causes},
        "loggers": {"vllm": vllm},
    }


def _path_of(descriptor: int) -> str:
    return f"/proc/{os.getpid()}/fd/{descriptor}"


@contextmanager
def start_explained(where: str) -> Iterator[None]:
    """Turn whatever keeps vLLM from starting into a UserError of one line; `where` names the model."""
    _errors.start_here()
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        cause = cause_of(error, _errors.records())
        raise UserError(
            f"{where}: expected vLLM to start, got: {cause}; {remedy_of(cause)}"
        ) from error


@contextmanager
def failure_explained() -> Iterator[None]:
    """Name the cause (RuntimeError) where a running vLLM says that it is above."""
    try:
        yield
    except Exception as error:
        if _SECONDARY not in str(error):
            raise
        cause = cause_of(error, _errors.records())
        raise RuntimeError(
            f"expected vLLM's engine to go on, got: {cause}; {remedy_of(cause)}"
        ) from error


def cause_in_log() -> str:
    """What a vLLM that has ended has logged as the first cause; "" when it ended without a word."""
    for record in _errors.records():
        cause = raised_in(record)
        if cause and _SECONDARY not in cause:
            return one_line(cause)
    return ""


def cause_of(error: Exception, records: list[str]) -> str:
    """What failed first, in one line.

    Args:
        error: as it came here.
        records: what vLLM's processes have logged meanwhile.
    """
    text = str(error).strip()
    if text and _SECONDARY not in text:
        return one_line(text)
    for record in records:
        cause = raised_in(record)
        if cause and _SECONDARY not in cause:
            return one_line(cause)
    if not text:
        return type(error).__name__
    ended = _FAILED_PROCESSES.search(text)
    status = f" ({ended[1]})" if ended is not None else ""
    return f"its process ended without a word{status}"


def raised_in(record: str) -> str:
    """The exception of a logged traceback with its message; without a traceback the record itself."""
    frames = list(_LAST_FRAME.finditer(record))
    if not frames:
        return record.strip()
    lines = record[frames[-1].end() :].splitlines()
    for number, line in enumerate(lines):
        # Below the frame stands its source, indented.
        if line and not line.startswith(" "):
            return "\n".join(lines[number:]).strip()
    return ""


def one_line(text: str) -> str:
    """A message of several lines in one, not too long, and without advice of vLLM's own about what has ours."""
    wrapped = _VALIDATION.search(text)
    if wrapped is not None:
        text = wrapped[1]
    line = _PLAIN_TYPE.sub("", " ".join(text.split()))
    if remedy_of(line) != OTHER_REMEDY:
        line = _NEXT_SENTENCE.split(line)[0]
    if len(line) > MAX_SHOWN:
        line = f"{line[:MAX_SHOWN]}…"
    return line.rstrip(".")


def remedy_of(cause: str) -> str:
    """What to do about it."""
    for words, remedy in REMEDIES.items():
        if words in cause:
            return remedy
    return OTHER_REMEDY
