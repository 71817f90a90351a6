"""Worker processes encode ahead: what they make is what a step makes, and whatever happens to them, a step gets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import learner.batch.ahead
from common.chat import ChatEncoder, EncodedPrompt
from common.config import Model
from common.data.images import ImageStore
from common.records import Dropped, Prompt
from learner.batch.ahead import MAX_RESTARTS, PromptsAhead, num_bytes
from learner.batch.collate import Collator
from learner.batch.crops import Crop
from tests.learner.helpers import make_pairs
from tests.tiny_families import tiny_llava_next, tiny_qwen
from tests.tiny_models import make_prompt, tiny_llava

# Python and torch start once for all of them.
pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60.0


def ahead_of(path: Path, num_workers: int = 1) -> PromptsAhead:
    return PromptsAhead(Model(path=str(path), max_length=256), str(path), num_workers)


@pytest.fixture
def ahead(model_path: Path) -> Iterator[PromptsAhead]:
    made = ahead_of(model_path)
    yield made
    made.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def processes_below(pid: int) -> set[int]:
    """Ids of the living processes that a process has started, and those that these have."""
    parent_of: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        # One that ended waits there until somebody asks how.
        if state != "Z":
            parent_of[int(path.parent.name)] = int(parent)
    below: set[int] = set()
    waiting = {pid}
    while waiting:
        waiting = {child for child, parent in parent_of.items() if parent in waiting}
        below |= waiting
    return below


def worker_ids() -> set[int]:
    """The workers of this process: what its server of forks has forked."""
    workers: set[int] = set()
    for pid in processes_below(os.getpid()):
        workers |= processes_below(pid)
    return workers


def assert_same(made: EncodedPrompt, expected: EncodedPrompt) -> None:
    assert made.token_ids == expected.token_ids
    assert made.num_image_tokens == expected.num_image_tokens
    assert made.model_inputs.keys() == expected.model_inputs.keys()
    for name, value in expected.model_inputs.items():
        assert torch.equal(made.model_inputs[name], value), name
        assert made.model_inputs[name].dtype == value.dtype
        # An open file each, otherwise.
        assert not made.model_inputs[name].is_shared()


@pytest.mark.parametrize("model", [tiny_llava, tiny_llava_next, tiny_qwen])
@pytest.mark.parametrize("crop", [None, Crop(3, 0.01, 0.2)], ids=["whole", "crop"])
def test_what_a_worker_makes_is_what_the_step_makes(
    store: ImageStore, model: Callable[[], Path], crop: Crop | None
) -> None:
    """Bit by bit; the worker uses one thread, this process as many as torch likes."""
    encoder = ChatEncoder(model(), 256)
    prompts = [make_prompt(store, seed) for seed in range(4)]
    ahead = ahead_of(model())
    ahead.prepare([(prompt, crop) for prompt in prompts], step=1)
    try:
        made = [delivered(ahead, prompt, crop) for prompt in prompts]
    finally:
        ahead.close()
    for prompt, from_worker in zip(prompts, made, strict=True):
        assert_same(from_worker, encoder.encode_prompt(prompt, crop))


def delivered(
    ahead: PromptsAhead, prompt: Prompt, crop: Crop | None = None
) -> EncodedPrompt:
    """What a worker has made of a prompt, once one has begun with it."""
    wait_until(lambda: not ahead.is_waiting(prompt, crop))
    encoded = ahead.take(prompt, crop)
    assert encoded is not None
    return encoded


def test_what_no_worker_has_begun_is_the_callers(
    ahead: PromptsAhead, store: ImageStore
) -> None:
    prompts = [make_prompt(store, seed) for seed in range(20)]
    assert ahead.take(prompts[0], None) is None, "nobody asked for it"
    ahead.prepare([(prompt, None) for prompt in prompts], step=1)
    # One worker and a place in front of it.
    assert ahead.take(prompts[19], None) is None
    assert not ahead.is_waiting(prompts[19], None)
    delivered(ahead, prompts[0])
    assert ahead.take(prompts[0], None) is None, "it is handed over, not kept"


def test_rows_that_cannot_be_used_are_refused_in_the_same_words(
    ahead: PromptsAhead, model_path: Path, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path)
    pairs = make_pairs(store, 4)
    Path(pairs[0].prompt.images[0].path).unlink()
    Path(pairs[1].prompt.images[0].path).write_bytes(b"no picture")
    pairs[2] = replace(pairs[2], prompt=replace(pairs[2].prompt, images=()))
    plain = Collator(ChatEncoder(model_path, 256))
    helped = Collator(ChatEncoder(model_path, 256), ahead=ahead)
    helped.prepare(pairs, step=1)
    reasons = []
    for pair in pairs[:3]:
        dropped = plain.encode(pair)
        assert isinstance(dropped, Dropped)
        assert helped.encode(pair) == dropped
        reasons.append(dropped.reason)
    assert reasons == ["image_missing", "image_changed", "image_count"]
    assert not isinstance(helped.encode(pairs[3]), Dropped)


def test_a_dead_worker_is_replaced_and_in_the_end_done_without(
    ahead: PromptsAhead, model_path: Path, store: ImageStore
) -> None:
    """Killed idle or at work: every pair is encoded all the same."""
    collator = Collator(ChatEncoder(model_path, 256), ahead=ahead)
    for step in range(MAX_RESTARTS + 1):
        wait_until(lambda: bool(worker_ids()))
        pairs = make_pairs(store, 4, first=4 * step)
        if step % 2:
            collator.prepare(pairs, step)
        for pid in worker_ids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ahead.num_restarts > 0 or not worker_ids())
        collator.prepare(pairs, step)
        for pair in pairs:
            assert not isinstance(collator.encode(pair), Dropped)
        ahead.forget(step)
        wait_until(lambda known=step: asked_again(ahead, store).num_restarts > known)
    assert ahead.num_restarts == MAX_RESTARTS + 1
    wait_until(lambda: not worker_ids())


def asked_again(ahead: PromptsAhead, store: ImageStore) -> PromptsAhead:
    """A pool whose worker died idle says so when it is asked for something."""
    ahead.prepare([(make_prompt(store, 99), None)], step=99)
    ahead.take(make_prompt(store, 99), None)
    return ahead


def test_a_worker_that_stops_is_killed(
    ahead: PromptsAhead, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered_first = make_prompt(store, 0)
    ahead.prepare([(delivered_first, None)], step=1)
    delivered(ahead, delivered_first)
    monkeypatch.setattr(learner.batch.ahead, "WAIT_LIMIT_S", 0.5)
    for pid in worker_ids():
        os.kill(pid, signal.SIGSTOP)
    prompt = make_prompt(store, 1)
    ahead.prepare([(prompt, None)], step=1)
    assert ahead.take(prompt, None) is None
    monkeypatch.setattr(learner.batch.ahead, "WAIT_LIMIT_S", LIMIT_S)
    ahead.prepare([(prompt, None)], step=1)
    delivered(ahead, prompt)


def test_what_is_ready_takes_a_bounded_number_of_bytes(
    ahead: PromptsAhead,
    model_path: Path,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for two: two more may be with the worker when they are ready, and all others wait."""
    prompts = [make_prompt(store, seed) for seed in range(12)]
    one = num_bytes(ChatEncoder(model_path, 256).encode_prompt(prompts[0]))
    monkeypatch.setattr(learner.batch.ahead, "MAX_BYTES", 2 * one)
    ahead.prepare([(prompt, None) for prompt in prompts], step=1)
    wait_until(lambda: ahead.num_ready_bytes >= 2 * one)
    time.sleep(0.2)
    assert ahead.num_ready_bytes <= 4 * one
    assert ahead.is_waiting(prompts[11], None)
    for prompt in prompts:
        delivered(ahead, prompt)
    assert ahead.num_ready_bytes == 0


def test_what_a_step_did_not_take_is_forgotten(
    ahead: PromptsAhead, store: ImageStore
) -> None:
    first, second = make_prompt(store, 0), make_prompt(store, 1)
    ahead.prepare([(first, None)], step=1)
    ahead.prepare([(second, None)], step=2)
    wait_until(lambda: not ahead.is_waiting(second, None))
    ahead.forget(1)
    delivered(ahead, second)
    assert ahead.take(first, None) is None
    assert ahead.num_ready_bytes == 0


OWNER = """
import sys, time
from pathlib import Path
from common.config import Model
from common.data.images import ImageStore
from learner.batch.ahead import PromptsAhead
from tests.tiny_models import make_prompt

path, images = sys.argv[1:]
ahead = PromptsAhead(Model(path=path, max_length=256), path, 2)
prompt = make_prompt(ImageStore(Path(images)), 0)
ahead.prepare([(prompt, None)], 1)
while ahead.is_waiting(prompt, None):
    time.sleep(0.01)
assert ahead.take(prompt, None) is not None
print("ready", flush=True)
time.sleep(600)
"""


def test_no_worker_outlives_a_learner_that_is_killed(
    model_path: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", OWNER, str(model_path), str(tmp_path)]
    owner = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    started = processes_below(owner.pid)
    assert len(started) >= 3, "a server and two workers"
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in started))


def test_none_is_left_when_it_is_closed(model_path: Path) -> None:
    ahead = ahead_of(model_path, num_workers=2)
    wait_until(lambda: len(worker_ids()) == 2)
    ahead.close()
    assert not worker_ids()
    ahead.close()


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
