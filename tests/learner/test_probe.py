"""The learner's side of the numerics gate against plain transformers, and what is no probe."""

from __future__ import annotations

import pytest
import torch

from common.data.images import ImageStore
from common.errors import UserError
from common.records import LIKELIEST, ProbeAnswer
from learner.probe import Probe
from tests.learner.helpers import LORA, encoder_of, make_pairs, run_config, started
from tests.probes import one_answer, token_logprobs
from tests.tiny_models import make_prompt


@pytest.fixture
def answers(store: ImageStore) -> list[ProbeAnswer]:
    """Of several lengths."""
    lengths = (3, 1, 5, 2, 4)
    probe: list[ProbeAnswer] = []
    for seed, length in enumerate(lengths):
        tokens = tuple(300 + 7 * seed + place for place in range(length))
        probe.append(ProbeAnswer(make_prompt(store, seed), tokens))
    return probe


def test_log_probs_are_those_of_the_whole_distribution(
    answers: list[ProbeAnswer],
) -> None:
    """Every place has the answer's token first, then the likeliest; all from one softmax over the vocabulary."""
    trainer = started(run_config())
    probe = trainer.set_probe(answers)
    model = trainer.policy.model
    for answer, logprobs in zip(probe.answers, probe.logprobs, strict=True):
        batch = trainer.models.collator.single(answer.prompt, answer.token_ids)
        with torch.no_grad():
            logits = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                **batch.media,
            ).logits[0]
        places = batch.response_mask[0].nonzero()[:, 0] - 1
        expected = logits[places].log_softmax(-1)
        for place, by_token in enumerate(logprobs):
            token = answer.token_ids[place]
            assert next(iter(by_token)) == token
            likely = expected[place].topk(LIKELIEST).indices.tolist()
            assert set(by_token) == {token, *likely}
            for other, value in by_token.items():
                assert value == pytest.approx(float(expected[place, other]), abs=1e-4)


def test_rows_of_a_forward_make_no_difference(answers: list[ProbeAnswer]) -> None:
    trainer = started(run_config())
    together = Probe(trainer.models, answers, rows=8).now()
    apart = Probe(trainer.models, answers, rows=1).now()
    for index in range(len(answers)):
        expected = token_logprobs(apart, index)
        assert token_logprobs(together, index) == pytest.approx(expected, abs=1e-5)


def test_the_probe_follows_the_training(
    answers: list[ProbeAnswer], store: ImageStore
) -> None:
    trainer = started(run_config(tuning=LORA))
    start = trainer.set_probe(answers)
    trainer.step(1, make_pairs(store, 6))
    manifest, _ = trainer.publish(1)
    assert manifest is not None
    assert manifest.probe is not None
    assert manifest.probe.logprobs != start.logprobs
    # In float32 nothing of a merged update is lost.
    assert manifest.merged_survives == pytest.approx(1, abs=1e-3)


def test_a_probe_must_be_a_response(store: ImageStore) -> None:
    trainer = started(run_config())
    (pair,) = make_pairs(store, 1)
    expected = "expected at least one response token and no media token"
    for tokens in ((), (5, encoder_of(trainer).image_token_id)):
        with pytest.raises(UserError, match=expected):
            trainer.set_probe(one_answer(pair.prompt, tokens))
