"""Prompts that worker processes encode before a step asks for them: pictures decoded, resized, normalised.

    prepare ──▶ waiting ──▶ with a worker ──▶ ready ──▶ take
                (in order)  (few at a time)   (bytes are limited)

A worker gives a prompt's tensors or nothing. What no worker has begun or could not do, the step does itself, so an
error says what it says without workers, and a worker that is slow or dead delays a step by one prompt at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from common.chat import EncodedPrompt
from common.config import Model
from common.records import Message, Prompt
from learner.batch import input_worker
from learner.batch.crops import Crop

log = logging.getLogger("sightline")

MAX_BYTES = 1 << 30
"""Of tensors that are ready and wait for their step. A few prompts may go beyond: their size is known afterwards."""
MAX_RESTARTS = 3
"""How often dead workers are replaced, before the step does their work to the end of the run."""
WAIT_LIMIT_S = 60.0
"""For a prompt that a worker has begun. One that takes longer has stopped."""

PromptAndCrop = tuple[Prompt, Crop | None]
"""What is encoded: a prompt, its images as they are or cropped."""
ContentKey = tuple[tuple[Message, ...], tuple[str, ...], Crop | None]
"""Messages, images by hash, crop: equal where the tensors are."""


def content_key(prompt: Prompt, crop: Crop | None) -> ContentKey:
    """What a prompt's tensors depend on; not its id, so that the pairs of one prompt share them."""
    images = tuple(image.sha256 for image in prompt.images)
    return prompt.messages, images, crop


def num_bytes(prompt: EncodedPrompt) -> int:
    """Bytes of a prompt's tensors."""
    return sum(value.nbytes for value in prompt.model_inputs.values())


@dataclass(frozen=True, slots=True)
class _Task:
    """A prompt to encode for a step."""

    prompt: Prompt
    crop: Crop | None
    step: int


class PromptsAhead:
    """Encodes prompts in `num_workers` processes of this rank, which start at once and end with it, however it ends.

    Args:
        model: its processor and limits.
        path: the model's directory.

    Attributes:
        is_up: whether there are workers; they take seconds to start.
        num_restarts: how often workers had died.
        num_ready_bytes: of tensors that are ready.
    """

    def __init__(self, model: Model, path: str, num_workers: int) -> None:
        self._worker_args = (model, path, str(Path.cwd()))
        self._num_workers = num_workers
        self.num_restarts = 0
        self._last_step_begun = 0
        self._waiting: dict[ContentKey, _Task] = {}
        self._with_worker: dict[ContentKey, _Task] = {}
        self._ready: dict[ContentKey, tuple[_Task, EncodedPrompt]] = {}
        self.num_ready_bytes = 0
        # Answers come in a thread of the pool, which may hold the lock already when a pool breaks.
        self._changed = threading.Condition(threading.RLock())
        self._pool: ProcessPoolExecutor | None = None
        self.is_up = False
        self._start_pool()

    def prepare(self, wanted: Iterable[PromptAndCrop], step: int) -> None:
        """Begin with prompts that this step will take; returns at once."""
        with self._changed:
            for prompt, crop in wanted:
                key = content_key(prompt, crop)
                if key in self._with_worker or key in self._ready:
                    continue
                self._waiting.setdefault(key, _Task(prompt, crop, step))
            self._feed()

    def take(self, prompt: Prompt, crop: Crop | None) -> EncodedPrompt | None:
        """The prompt's tensors, which are forgotten here; None where the caller has to make them."""
        key = content_key(prompt, crop)
        with self._changed:
            # No worker has begun it: this process is as fast.
            self._waiting.pop(key, None)
            self._wait_for(key)
            if key not in self._ready:
                return None
            encoded = self._drop_ready(key)
            self._feed()
            return encoded

    def is_waiting(self, prompt: Prompt, crop: Crop | None) -> bool:
        """Whether it was asked for and no worker has begun it."""
        return content_key(prompt, crop) in self._waiting

    def forget(self, step: int) -> None:
        """Drop what steps up to this one did not take."""
        with self._changed:
            self._last_step_begun = step
            for key, task in list(self._waiting.items()):
                if task.step <= step:
                    del self._waiting[key]
            for key, (task, _) in list(self._ready.items()):
                if task.step <= step:
                    self._drop_ready(key)
            self._feed()

    def close(self) -> None:
        """End the workers."""
        with self._changed:
            pool, self._pool = self._pool, None
            self.is_up = False
            self._waiting.clear()
        if pool is not None:
            _kill_workers(pool)
            pool.shutdown()

    def _wait_for(self, key: ContentKey) -> None:
        """Wait while a worker has this prompt. A worker that does not answer is killed, so no wait is endless."""
        ends_at = time.monotonic() + WAIT_LIMIT_S
        while key in self._with_worker:
            left_s = ends_at - time.monotonic()
            if left_s <= 0 and self._pool is not None:
                _kill_workers(self._pool)
                ends_at += WAIT_LIMIT_S
            self._changed.wait(max(left_s, 0.1))

    def _feed(self) -> None:
        """Give waiting prompts to workers while there is room (under the lock)."""
        while self._waiting and self._has_room():
            assert self._pool is not None, "closed pools are not up"
            key = next(iter(self._waiting))
            task = self._waiting.pop(key)
            try:
                future = self._pool.submit(input_worker.encode, task.prompt, task.crop)
            except BrokenExecutor as error:
                self._replace_pool(self._pool, error)
                continue
            self._with_worker[key] = task
            answered = partial(self._note_answer, key, self._pool)
            future.add_done_callback(answered)

    def _has_room(self) -> bool:
        # One more than there are workers, so that none waits for this process.
        has_place = len(self._with_worker) <= self._num_workers
        return self.is_up and has_place and self.num_ready_bytes < MAX_BYTES

    def _note_answer(
        self,
        key: ContentKey,
        pool: ProcessPoolExecutor,
        future: Future[EncodedPrompt],
    ) -> None:
        """Keep what a worker has made (in a thread of the pool)."""
        encoded = _answer(future)
        error = None if future.cancelled() else future.exception()
        with self._changed:
            task = self._with_worker.pop(key)
            if encoded is not None and task.step > self._last_step_begun:
                self._ready[key] = (task, encoded)
                self.num_ready_bytes += num_bytes(encoded)
            if isinstance(error, BrokenExecutor):
                self._replace_pool(pool, error)
            self._feed()
            self._changed.notify_all()

    def _drop_ready(self, key: ContentKey) -> EncodedPrompt:
        _, encoded = self._ready.pop(key)
        self.num_ready_bytes -= num_bytes(encoded)
        return encoded

    def _replace_pool(self, broken: ProcessPoolExecutor, error: Exception) -> None:
        """New workers for those that died, a few times."""
        # All prompts of a broken pool say so; the first one replaced it. A closed pool is not replaced.
        if broken is not self._pool:
            return
        self.num_restarts += 1
        if self.num_restarts <= MAX_RESTARTS:
            log.warning(
                "learner: a worker of its input died, starts another: %s", error
            )
            self._start_pool()
            return
        log.warning("learner: workers of its input die again and again, goes on alone")
        self._pool = None
        self.is_up = False
        self._waiting.clear()

    def _start_pool(self) -> None:
        """Start workers, which fork from a small server: the learner itself may be too large for that by now."""
        context = get_context("forkserver")
        # Imported once, for all workers.
        context.set_forkserver_preload([input_worker.__name__])
        self._pool = ProcessPoolExecutor(
            self._num_workers,
            context,
            initializer=input_worker.start,
            initargs=self._worker_args,
        )
        self.is_up = False
        # The server's imports take seconds. Until then the step does the work.
        threading.Thread(target=self._bring_up, args=(self._pool,), daemon=True).start()

    def _bring_up(self, pool: ProcessPoolExecutor) -> None:
        """Wait until the workers of a pool are there (in a thread)."""
        try:
            # A pool starts a process when it has a task for it.
            tasks = [
                pool.submit(input_worker.be_ready) for _ in range(self._num_workers)
            ]
            for task in tasks:
                task.result()
        except (RuntimeError, OSError, EOFError) as error:
            # Dead, closed meanwhile, or no process could be started.
            with self._changed:
                self._replace_pool(pool, error)
            return
        with self._changed:
            if pool is self._pool:
                self.is_up = True
                self._feed()


def _answer(future: Future[EncodedPrompt]) -> EncodedPrompt | None:
    """What a worker made, in memory of this process; None when it made nothing."""
    if future.cancelled() or future.exception() is not None:
        return None
    shared = future.result()
    inputs: dict[str, torch.Tensor] = {}
    for name, value in shared.model_inputs.items():
        # Shared memory is scarce in containers, and costs an open file while it lives.
        inputs[name] = value.clone()
    return replace(shared, model_inputs=inputs)


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    # `shutdown` waits for tasks that have begun, and a process that has stopped never ends one.
    processes = getattr(pool, "_processes", None) or {}
    for process in list(processes.values()):
        process.kill()
