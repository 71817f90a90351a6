"""Verdicts on disk, by the hash of everything that a judge sees: asking twice about the same answers costs nothing.

    CACHE/3f/3f9c….json    {"scores": [1.0, 0.0], "notes": ["", "too long"]}

The hash is over the judge's identity (its settings, the source of a user's file, the weights of its model), the
prompt's messages, the hashes of its images, its reference and truth, and the completions in order. Ids are left out, so
that other runs ask for the same entries.

Workers share the folder: an entry appears whole, and of two that write the same one the later stays. An entry that
cannot be read is a miss.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.paths import writing
from common.records import Dropped, Prompt, RolloutGroup, Verdict
from reward.ranking import check_verdict

log = logging.getLogger(__name__)

VERSION = 1
"""Of what the hash is over; another one leaves all older entries behind."""


class VerdictCache:
    """The verdicts of one judge in a folder, which is made if it is not there.

    Args:
        identity: of the judge (`reward.judges.factory.judge_identity`).

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._identity = identity
        self._complained = False

    def get_all(self, groups: Sequence[RolloutGroup]) -> dict[int, Verdict]:
        """The verdicts that are known, by the index of their group."""
        known: dict[int, Verdict] = {}
        for index, group in enumerate(groups):
            verdict = self.get(group)
            if verdict is not None:
                known[index] = verdict
        return known

    def put_all(
        self,
        groups: Sequence[RolloutGroup],
        verdicts: Sequence[Verdict | Dropped],
    ) -> None:
        """Keep the verdicts; a group that was dropped is asked about again."""
        for group, verdict in zip(groups, verdicts, strict=True):
            if isinstance(verdict, Verdict):
                self.put(group, verdict)

    def get(self, group: RolloutGroup) -> Verdict | None:
        """The verdict about this prompt and these completions, None when it is not known or its entry is damaged."""
        path = self._path(group)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            scores = tuple(entry["scores"])
            notes = tuple(map(str, entry["notes"]))
            # Older entries lack it.
            share = entry.get("first_wins")
            first_wins = None if share is None else float(share)
            members = []
            for name, of_member in entry.get("members", ()):
                members.append((str(name), tuple(map(float, of_member))))
        except FileNotFoundError:
            return None
        # Half an entry, another program's file, or none that can be read.
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("reward.cache: %s is damaged (%s), asking again", path, error)
            return None
        verdict = Verdict(scores, notes, first_wins, tuple(members))
        if check_verdict(group, verdict) is not None:
            log.warning("reward.cache: %s holds no verdict, asking again", path)
            return None
        return verdict

    def put(self, group: RolloutGroup, verdict: Verdict) -> None:
        """Keep a verdict. A disk that is full costs later calls of the judge, not the run."""
        path = self._path(group)
        entry = {
            "scores": verdict.scores,
            "notes": verdict.notes,
            "first_wins": verdict.first_wins,
            "members": verdict.members,
        }
        try:
            text = json.dumps(entry)
            _write_whole(path, text)
        except (OSError, TypeError, ValueError) as error:
            # Once: what went wrong here will go wrong for all of them.
            if not self._complained:
                log.warning("reward.cache: cannot keep verdicts (%s)", error)
            self._complained = True

    def _path(self, group: RolloutGroup) -> Path:
        key = _key(self._identity, group)
        return self._folder / key[:2] / f"{key}.json"


def _key(identity: str, group: RolloutGroup) -> str:
    prompt = group.prompt
    completions = []
    for completion in group.completions:
        completions.append([completion.text, completion.finish_reason])
    content = {
        "version": VERSION,
        "judge": identity,
        "messages": _messages(prompt),
        "images": [image.sha256 for image in prompt.images],
        "reference": prompt.reference,
        "truth": prompt.truth,
        "completions": completions,
    }
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _messages(prompt: Prompt) -> list[Any]:
    messages: list[Any] = []
    for message in prompt.messages:
        parts = [[part.kind, part.text] for part in message.parts]
        messages.append([message.role, parts])
    return messages


def _write_whole(path: Path, text: str) -> None:
    """Write a file that readers find whole or not at all.

    It is not brought to the disk itself: an entry that a power cut tears is a miss, and waiting would cost more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other writer has, on whatever machine it is.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=".", delete=False
    ) as file:
        partial = Path(file.name)
        try:
            file.write(text)
            file.flush()
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
