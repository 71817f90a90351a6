"""What runs in a worker process of the learner's input: it encodes one prompt after the other (see `ahead.py`)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import torch

from common.chat import ChatEncoder, EncodedPrompt, encoder_of
from common.config import Model
from common.records import Prompt
from learner.batch.crops import Crop

_encoder: ChatEncoder | None = None
"""This process's only one: a pool's tasks are functions, and they have no object to keep it in."""


def start(model: Model, path: str, folder: str) -> None:
    """Open the model's processor; the first thing that a worker does.

    Args:
        path: the start policy's directory.
        folder: the learner's working directory, which images may lie below.
    """
    global _encoder
    _end_with_learner()
    os.chdir(folder)
    # The learner's step has the other cores, and small pictures are slower with several.
    torch.set_num_threads(1)
    _encoder = encoder_of(model, path)


def encode(prompt: Prompt, crop: Crop | None) -> EncodedPrompt:
    """The prompt's tensors. They travel in shared memory: torch teaches that to `multiprocessing` at its import."""
    assert _encoder is not None, "a pool starts its workers with `start`"
    return _encoder.encode_prompt(prompt, crop)


def be_ready() -> None:
    """The first task of a worker: a pool starts a process when it has a task for it."""


def _end_with_learner() -> None:
    # Ctrl-C reaches all processes of a terminal. The learner alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    """End this process with the learner's: one that is killed cannot tell its workers."""
    learner = multiprocessing.parent_process()
    assert learner is not None
    learner.join()
    os._exit(1)
