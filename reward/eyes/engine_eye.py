"""An eye of engines that run elsewhere: texts by `generate`, log-probs of options by `score`.

Questions about the same picture go to the same engine, which then encodes it once; the engine with the least to do
takes the next picture. What an engine fails at is asked of the others: it may be lost, and they need not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from common.gathering import gather_whole
from common.protocols import GenerationRequest, Question, Reply
from common.records import Dropped, Prompt, RolloutGroup

MAX_ANSWERS = 512
"""Per call of `score`, so that a call ends in time."""

Answers: TypeAlias = list[tuple[Prompt, str]]
Scores: TypeAlias = list[tuple[float, ...] | Dropped]


class AnswerEngine(Protocol):
    """What an eye needs of an engine; a client of a rollout worker has it."""

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        """As `common.protocols.Engine`."""
        ...

    async def score(
        self,
        answers: Sequence[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        """As `common.protocols.Engine`."""
        ...

    async def encode(
        self,
        answers: Sequence[str],
    ) -> list[tuple[int, ...]]:
        """Token ids of whole answers, as `score` scores them."""
        ...


class EngineEye:
    """Implements `common.protocols.Eye` over one or more engines with equal weights."""

    name = "engines"

    def __init__(
        self,
        engines: Sequence[AnswerEngine],
    ) -> None:
        assert engines, "an eye without engines sees nothing"
        self._desks = [_Desk(engine) for engine in engines]

    async def ask(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        """One reply per question, in order; Dropped as the engine drops it."""
        by_picture: dict[tuple[str, ...], list[int]] = {}
        for index, question in enumerate(questions):
            hashes = tuple(image.sha256 for image in question.prompt.images)
            by_picture.setdefault(hashes, []).append(index)
        replies: list[Reply | Dropped | None] = [None] * len(questions)

        async def ask_about(indices: list[int]) -> None:
            answered = await self._ask_one([questions[index] for index in indices])
            for index, reply in zip(indices, answered, strict=True):
                replies[index] = reply

        await gather_whole(map(ask_about, by_picture.values()))
        return [reply for reply in replies if reply is not None]

    async def _ask_one(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        """What one engine answers; raises the error of the last one when all fail."""
        left = list(self._desks)
        while True:
            desk = min(left, key=lambda desk: (desk.has_failed, desk.num_pending))
            left.remove(desk)
            try:
                return await desk.ask(questions)
            except Exception:
                if not left:
                    raise


class _Desk:
    """One engine and what waits for it.

    An engine scores one call after the other, so what comes meanwhile is put together into the next call.

    Attributes:
        num_pending: questions that have no answer yet.
        has_failed: at the last call that ended.
    """

    def __init__(
        self,
        engine: AnswerEngine,
    ) -> None:
        self._engine = engine
        self._waiting: list[tuple[Answers, asyncio.Future[Scores]]] = []
        self._scoring: asyncio.Task[None] | None = None
        self._num_decisive: dict[tuple[str, ...], list[int]] = {}
        self.num_pending = 0
        self.has_failed = False

    async def ask(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        self.num_pending += len(questions)
        try:
            texts = [question for question in questions if not question.options]
            choices = [question for question in questions if question.options]
            answering = (self._texts(texts), self._choices(choices))
            written, read = await gather_whole(answering)
            self.has_failed = False
        except Exception:
            self.has_failed = True
            raise
        finally:
            self.num_pending -= len(questions)
        # In the order of the questions.
        waiting = {False: iter(written), True: iter(read)}
        return [next(waiting[bool(question.options)]) for question in questions]

    async def _texts(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        requests: list[GenerationRequest] = []
        for question in questions:
            request = GenerationRequest(
                question.prompt.id,
                question.prompt,
                num_completions=1,
                temperature=0.0,
                max_tokens=question.max_tokens,
            )
            requests.append(request)
        if not requests:
            return []
        replies: list[Reply | Dropped] = []
        for group in await self._engine.generate(requests):
            if isinstance(group, Dropped):
                replies.append(group)
            else:
                replies.append(Reply(text=group.completions[0].text))
        return replies

    async def _choices(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        answers: Answers = []
        for question in questions:
            for option in question.options:
                answers.append((question.prompt, option))
        if not answers:
            return []
        scores = iter(await self._score(answers))
        replies: list[Reply | Dropped] = []
        for question in questions:
            of_question = [next(scores) for _ in question.options]
            lengths = await self._decisive(question.options)
            replies.append(_reply_of(of_question, lengths))
        return replies

    async def _decisive(
        self,
        options: tuple[str, ...],
    ) -> list[int]:
        """How many tokens of each option tell it from the others."""
        if options not in self._num_decisive:
            # Brings torch along, which most judges do without.
            from common.chat.options import decisive_tokens

            token_ids = await self._engine.encode(options)
            beginnings = decisive_tokens(options, token_ids)
            self._num_decisive[options] = [len(tokens) for tokens in beginnings]
        return self._num_decisive[options]

    async def _score(
        self,
        answers: Answers,
    ) -> Scores:
        scores: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._waiting.append((answers, scores))
        if self._scoring is None or self._scoring.done():
            self._scoring = asyncio.create_task(self._score_waiting())
        return await scores

    async def _score_waiting(self) -> None:
        while self._waiting:
            batch = self._take_waiting()
            answers: Answers = []
            for some_answers, _ in batch:
                answers += some_answers
            try:
                scores = await self._engine.score(answers)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for some_answers, future in batch:
                end = start + len(some_answers)
                # A caller that was cancelled is not there any more.
                if not future.done():
                    future.set_result(scores[start:end])
                start = end

    def _take_waiting(self) -> list[tuple[Answers, asyncio.Future[Scores]]]:
        """The first waiting calls that fit into one; at least one."""
        num_answers = 0
        batch: list[tuple[Answers, asyncio.Future[Scores]]] = []
        while self._waiting:
            num_answers += len(self._waiting[0][0])
            if batch and num_answers > MAX_ANSWERS:
                break
            batch.append(self._waiting.pop(0))
        return batch


def _reply_of(
    scores: Scores,
    lengths: Sequence[int],
) -> Reply | Dropped:
    logprobs: list[float] = []
    for of_tokens, length in zip(scores, lengths, strict=True):
        if isinstance(of_tokens, Dropped):
            return of_tokens
        logprobs.append(sum(of_tokens[:length]))
    return Reply(logprobs=tuple(logprobs))
