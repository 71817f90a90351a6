"""A judge that sees: a vision-language model compares answers two by two, or grades each, the image before its eyes.

    group ─▶ questions (both orders of every two answers) ─▶ Eye ─▶ replies ─▶ matches ─▶ scores

What a reply says is read by `reward/judges/readings.py`; a comparison that cannot be read has no result, and a group
with too few that can be read has no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from common.config import Asking
from common.protocols import Eye, JudgeError, Question, Reply
from common.records import Dropped, RolloutGroup, Verdict
from reward.judges.faults import Fault, beginning, fault_of, judge_each
from reward.judges.matches import (
    Match,
    Pairing,
    mean_of_known,
    mean_values,
    mean_wins,
    round_robin,
    tournament,
)
from reward.judges.prompts import Questions
from reward.judges.readings import (
    both_orders,
    first_wins,
    probabilities,
    read_choice,
    read_grade,
)

_ALONE = Fault("judge_failed", "expected two answers to compare, got one")


class SeeingJudge:
    """Asks `eye` as `settings` say.

    Scores are in 0-1 (pairwise), from -1 to 1 (tournament, see `reward/judges/matches.py`) or grades (pointwise; with
    log-probs the expected grade).
    """

    def __init__(
        self,
        name: str,
        settings: Asking,
        eye: Eye,
    ) -> None:
        self.name = name
        self._settings = settings
        self._eye = eye
        self._questions = Questions(settings)

    async def judge(
        self,
        groups: Sequence[RolloutGroup],
    ) -> list[Verdict | Dropped | JudgeError]:
        """One verdict per group, in order.

        Returns:
            Dropped as `unreadable` for a group whose replies say too little, as `judge_failed` for one that the eye
            could not be asked about.
        """
        judge_group = self._compare
        if self._settings.mode == "pointwise":
            judge_group = self._grade
        return await judge_each(judge_group, groups)

    async def _compare(
        self,
        group: RolloutGroup,
    ) -> Verdict | Dropped:
        num_answers = len(group.completions)
        meet, score = round_robin, mean_values
        if self._settings.mode == "tournament":
            meet, score = tournament, mean_wins
        matches = await meet(num_answers, partial(self._play, group))
        faults = [match.fault for match in matches if match.fault is not None]
        num_read = len(matches) - len(faults)
        scores = score(num_answers, matches)
        if scores is None or num_read < self._settings.min_readable * len(matches):
            fault = faults[0] if faults else _ALONE
            return fault.drop(group.id, self.name, num_read, len(matches))
        notes: list[str] = []
        for index in range(num_answers):
            notes.append(_note_of(index, matches))
        shares = [match.first_wins for match in matches]
        return Verdict(tuple(scores), tuple(notes), mean_of_known(shares))

    async def _play(
        self,
        group: RolloutGroup,
        pairings: Sequence[Pairing],
    ) -> list[Match]:
        """Ask about pairs of answers, in both orders at once. Equal texts tie without a question."""
        texts = [completion.text for completion in group.completions]
        differing: list[Pairing] = []
        for first, second in pairings:
            if texts[first] != texts[second]:
                differing.append((first, second))
        questions: list[Question] = []
        for first, second in differing:
            questions.append(self._question(group, first, second))
            questions.append(self._question(group, second, first))
        replies: Iterator[Reply | Dropped] = iter(())
        if questions:
            replies = iter(await self._eye.ask(questions))
        matches: list[Match] = []
        for first, second in pairings:
            match = Match(first, second, 0.5)
            if (first, second) in differing:
                forward = next(replies)
                swapped = next(replies)
                match = self._match(first, second, forward, swapped)
            matches.append(match)
        return matches

    def _question(self, group: RolloutGroup, first: int, second: int) -> Question:
        """Which of two answers is better, in this order."""
        return self._questions.compare(
            group.prompt,
            f"{group.id}/{first}-{second}",
            group.completions[first].text,
            group.completions[second].text,
        )

    def _match(
        self,
        first: int,
        second: int,
        one: Reply | Dropped,
        other: Reply | Dropped,
    ) -> Match:
        forward = self._part_of_first(one)
        swapped = self._part_of_first(other)
        backward = None if swapped is None else 1 - swapped
        value = both_orders(forward, backward)
        if forward is None or swapped is None or value is None:
            unread = one if forward is None else other
            return Match(first, second, None, fault_of(unread))
        of_first_shown = (forward + swapped) / 2
        return Match(first, second, value, first_wins=of_first_shown)

    def _part_of_first(
        self,
        reply: Reply | Dropped,
    ) -> float | None:
        """What the answer that stands first wins, in 0-1."""
        if isinstance(reply, Dropped):
            return None
        if not reply.logprobs:
            choice = read_choice(reply.text, self._settings.labels)
            return None if choice is None else first_wins(choice)
        shares = probabilities(reply.logprobs)
        if shares is None:
            return None
        return sum(share * first_wins(choice) for choice, share in enumerate(shares))

    async def _grade(
        self,
        group: RolloutGroup,
    ) -> Verdict | Dropped:
        # Equal texts get one grade.
        texts = list(dict.fromkeys(answer.text for answer in group.completions))
        questions: list[Question] = []
        for index, text in enumerate(texts):
            id = f"{group.id}/{index}"
            questions.append(self._questions.grade(group.prompt, id, text))
        replies = await self._eye.ask(questions)
        grades: dict[str, float] = {}
        notes: dict[str, str] = {}
        faults: list[Fault] = []
        for text, reply in zip(texts, replies, strict=True):
            grade = self._grade_of(reply)
            if grade is None:
                faults.append(fault_of(reply))
                continue
            assert isinstance(reply, Reply), "what has a grade was answered"
            grades[text] = grade
            notes[text] = beginning(reply.text) or f"grade {grade:.2f}"
        # A verdict is a score for every answer.
        if faults:
            return faults[0].drop(group.id, self.name, len(grades), len(texts))
        answers = [answer.text for answer in group.completions]
        return Verdict(
            tuple(grades[text] for text in answers),
            tuple(notes[text] for text in answers),
        )

    def _grade_of(
        self,
        reply: Reply | Dropped,
    ) -> float | None:
        if isinstance(reply, Dropped):
            return None
        lowest, highest = self._settings.lowest, self._settings.highest
        if not reply.logprobs:
            return read_grade(reply.text, lowest, highest)
        shares = probabilities(reply.logprobs)
        if shares is None:
            return None
        # Of the grades among themselves, the expected one.
        return sum((lowest + index) * share for index, share in enumerate(shares))


def _note_of(
    answer: int,
    matches: Sequence[Match],
) -> str:
    """How an answer did against the others."""
    parts: list[str] = []
    for match in matches:
        if answer not in (match.first, match.second):
            continue
        other = match.second if answer == match.first else match.first
        parts.append(f"{_result(answer, match)} {other + 1}")
    return ", ".join(parts)


def _result(
    answer: int,
    match: Match,
) -> str:
    if match.value is None:
        return "unread against"
    if match.value == 0.5:
        return "tied with"
    first_won = match.value > 0.5
    return "beat" if first_won == (answer == match.first) else "lost to"
