"""A judge by annotations: a completion pays for every object that it makes up, and for those that it leaves out.

The objects are counted as the suite `chair` counts them, in any captions of pictures that COCO's files annotate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path

from common import config
from common.errors import UserError
from common.protocols import JudgeError
from common.records import Completion, Prompt
from reward.benchmarks.coco import (
    CocoObjects,
    annotation_files,
    image_id_of,
    read_objects,
)
from reward.benchmarks.objects import ObjectWords, read_synonyms
from reward.judges.rules import Fault, RulesJudge

ANNOTATIONS_KEY = "reward.judge.annotations"
SYNONYMS_KEY = "reward.judge.synonyms"


def chair_judge(settings: config.ChairJudge) -> RulesJudge:
    """The judge of these annotations (UserError when they or the synonyms cannot be read)."""
    words = read_synonyms(settings.synonyms, SYNONYMS_KEY)
    coco = read_objects(settings.annotations, words, ANNOTATIONS_KEY)
    annotations = Annotations(coco, words)
    return RulesJudge(partial(faults_of, annotations, settings), name="chair")


def check_files(settings: config.ChairJudge) -> None:
    """Refuse (UserError) synonyms that cannot be read, and a folder without annotations."""
    read_synonyms(settings.synonyms, SYNONYMS_KEY)
    annotation_files(settings.annotations, ANNOTATIONS_KEY)


def identity_of_files(settings: config.ChairJudge) -> str:
    """A hash of the annotations and of the synonyms (UserError when one cannot be read)."""
    files = annotation_files(settings.annotations, ANNOTATIONS_KEY)
    digest = sha256()
    for file in (Path(settings.synonyms), *files):
        try:
            with file.open("rb") as stream:
                digest.update(file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"reward.judge: expected a readable file, got {file} ({error.strerror}); check the path"
            ) from error
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Annotations:
    """What is in the pictures, and the words for it."""

    coco: CocoObjects
    words: ObjectWords

    def objects_of(
        self,
        prompt: Prompt,
        column: str,
    ) -> set[str]:
        """The objects in a prompt's picture (JudgeError when nobody knows them)."""
        facts = {**_name_of_picture(prompt), **(prompt.truth or {})}
        image_id = image_id_of(facts, column)
        if image_id is None:
            raise JudgeError(
                f"prompt {prompt.id}: expected a picture's id in the column {column} or in the name of its file, got "
                "none"
            )
        objects = self.coco.objects.get(image_id)
        if objects is None:
            raise JudgeError(
                f"prompt {prompt.id}: expected annotations of image {image_id}, got none"
            )
        return objects


def _name_of_picture(prompt: Prompt) -> dict[str, str]:
    """The name of the prompt's picture as the column `image`; nothing for a file that is named by its hash."""
    for image in prompt.images:
        path = Path(image.path)
        if path.stem != image.sha256:
            return {"image": path.name}
    return {}


def faults_of(
    annotations: Annotations,
    settings: config.ChairJudge,
    prompt: Prompt,
    completion: Completion,
) -> list[Fault]:
    """Every mention of an object that is not there, and every object that is not mentioned."""
    objects = annotations.objects_of(prompt, settings.image_id)
    named = annotations.words.named(completion.text)
    faults: list[Fault] = []
    for name in named:
        if name not in objects:
            faults.append((f"no {name}", settings.hallucination_cost))
    if settings.miss_cost:
        for name in sorted(objects.difference(named)):
            faults.append((f"missed {name}", settings.miss_cost))
    return faults
