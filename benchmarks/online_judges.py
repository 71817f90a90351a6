"""Judges of `benchmarks.online_loop`: functions of TRL's signature, which its trainer and our reward worker call alike.

Every argument is a list with an element per completion; a completion is a conversation of one turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from benchmarks import letters_judge
from common.config import RulesJudge
from common.records import Completion, Prompt
from common.shapes.faults import faults_of

Answer: TypeAlias = Sequence[Mapping[str, str]]


def oracle(
    completions: Sequence[Answer],
    completion_ids: Sequence[Sequence[int]],
    objects: Sequence[Any],
    seed: Sequence[int],
    end_id: int,
    **_: object,
) -> list[float]:
    """Minus the cost of all that is wrong with every caption, as the demo's judge has it: the scene is known.

    Args:
        objects: of every completion's scene.
        seed: of its drawing.
        end_id: the token without which a caption is cut off.
    """
    costs = RulesJudge()
    scores: list[float] = []
    rows = zip(completions, completion_ids, objects, seed, strict=True)
    for answer, token_ids, scene_objects, scene_seed in rows:
        truth = {"objects": scene_objects, "seed": scene_seed}
        prompt = Prompt("", (), (), truth=truth)
        completion = Completion(
            tuple(token_ids),
            _text(answer),
            0,
            0,
            "stop" if end_id in token_ids else "length",
        )
        faults = faults_of(prompt, completion, costs)
        scores.append(0.0 - sum(cost for _, cost in faults))
    return scores


def letters(completions: Sequence[Answer], **_: object) -> list[float]:
    """Scores for answers of a random model; see `benchmarks.letters_judge`."""
    texts = [_text(answer) for answer in completions]
    return letters_judge.score("", texts)


def _text(answer: Answer) -> str:
    return answer[-1]["content"]
