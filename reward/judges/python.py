"""A judge that a user wrote: a class with `judge(group)`, or a function; see `reward/judges/signatures.py`.

    class MyJudge:                                          def my_judge(prompt, images, completions, label):
        def __init__(self, strict=False): ...                   return [float(label in text) for text in completions]
        def judge(self, group): return [1.0, 0.0]

What it returns is one number per completion, or a `Verdict`. Code that is not asynchronous runs in threads, of up to
`reward.concurrency` groups at once. A JudgeError, an error of the system or network (OSError) and a call without an end
are tried again; any other exception drops the group, with the judge, the prompt and the user's own line in the reason.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any, TypeAlias

from common import config
from common.errors import Refused, UserError
from common.protocols import JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.judges.calls import call
from reward.judges.signatures import NotOurs, arguments_of
from reward.judges.user_code import import_target, read_code, told

Answer: TypeAlias = Verdict | Dropped | JudgeError
AskOne: TypeAlias = Callable[[RolloutGroup], Any]
AskMany: TypeAlias = Callable[[Sequence[RolloutGroup]], Any]


def checked(settings: config.PythonJudge) -> config.PythonJudge:
    """The settings with the text of the user's file, for workers on any machine.

    Raises:
        UserError: the code cannot be imported, or is no judge, or does not take its settings.
    """
    code = read_code(settings.target)
    if code is not None:
        settings = settings.with_code(code)
    target = import_target(settings)
    if inspect.isclass(target):
        # Its constructor may load a model: it is called in the worker alone.
        _check_class(target, settings)
    else:
        UserJudge(settings)
    return settings


class UserJudge:
    """Asks the object that `settings.target` names.

    Raises:
        UserError: it cannot be imported or made, or is no judge.
    """

    def __init__(self, settings: config.PythonJudge) -> None:
        self.name = settings.target
        self._limit_s = settings.timeout_s
        code = settings.code or read_code(settings.target)
        self._path = code.path if code is not None else ""
        target = _made(settings, self._path)
        self._ask_many: AskMany | None = None
        self._ask_one: AskOne | None = None
        if not hasattr(target, "judge"):
            self._ask_one = _function(settings, target)
        elif _takes_many(target.judge):
            self._ask_many = target.judge
        else:
            self._ask_one = target.judge

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Answer]:
        """One answer per group, in order; the groups are judged side by side where the user's code takes one."""
        if self._ask_many is not None:
            return await self._judge_together(self._ask_many, groups)
        assert self._ask_one is not None, "one of the two"
        calls = []
        for group in groups:
            calls.append(self._judge_group(self._ask_one, group))
        return list(await asyncio.gather(*calls))

    async def _judge_group(
        self,
        ask: AskOne,
        group: RolloutGroup,
    ) -> Answer:
        asking = partial(ask, group)
        outcome = await call(asking, self._limit_s)
        if outcome.error is not None:
            return self._failure(group, outcome.error)
        return self._read(group, outcome.value)

    async def _judge_together(
        self,
        ask: AskMany,
        groups: Sequence[RolloutGroup],
    ) -> list[Answer]:
        asking = partial(ask, groups)
        outcome = await call(asking, self._limit_s)
        error = outcome.error
        if error is None:
            error = _fault_in_count(groups, outcome.value)
        if error is not None:
            if len(groups) == 1:
                return [self._failure(groups[0], error)]
            # Which group it was about is not known: each is asked about alone.
            reason = told(error, self._path)
            raise JudgeError(reason)
        answers: list[Answer] = []
        for group, value in zip(groups, outcome.value, strict=True):
            answer = self._read(group, value)
            answers.append(answer)
        return answers

    def _failure(
        self,
        group: RolloutGroup,
        error: BaseException,
    ) -> Answer:
        if isinstance(error, _NoVerdict):
            return self._dropped(group, "bad_verdict", str(error))
        if isinstance(error, Refused):
            return self._dropped(group, "judge_failed", str(error))
        reason = told(error, self._path)
        if isinstance(error, JudgeError | OSError):
            return JudgeError(reason)
        return self._dropped(group, "judge_failed", reason)

    def _read(
        self,
        group: RolloutGroup,
        value: Any,
    ) -> Answer:
        """What the user's code returned; its objects are not trusted to be what they seem."""
        if isinstance(value, Dropped):
            reason = str(value.reason)
            detail = str(value.detail)
            return Dropped(group.id, reason, detail)
        if isinstance(value, JudgeError):
            return value
        try:
            return _verdict(value, len(group.completions))
        except Exception as error:
            return self._failure(group, error)

    def _dropped(
        self,
        group: RolloutGroup,
        reason: str,
        why: str,
    ) -> Dropped:
        detail = f"judge {self.name}, prompt {group.prompt.id}: {why}"
        return Dropped(group.id, reason, detail)


class _NoVerdict(ValueError):
    """The user's code returned something else than scores."""


def _verdict(value: Any, num_completions: int) -> Verdict:
    if not isinstance(value, Verdict):
        scores = _scores(value, num_completions)
        return Verdict(scores)
    scores = _scores(value.scores, num_completions)
    notes = tuple(map(str, value.notes))
    # One per completion, or none.
    if len(notes) != num_completions:
        notes = ()
    # Whether it is a share is checked as every judge's is.
    share: Any = value.first_wins
    if hasattr(share, "item"):
        share = share.item()
    return Verdict(scores, notes, share)


def _scores(value: Any, num_completions: int) -> tuple[float, ...]:
    """A list of numbers, an array or a tensor as scores."""
    scores = value
    if hasattr(value, "tolist"):
        scores = value.tolist()
    # A single completion may have a bare number.
    if isinstance(scores, Real):
        scores = [scores]
    if not isinstance(scores, list | tuple):
        raise _NoVerdict(_expected(num_completions, value))
    numbers: list[float] = []
    for score in scores:
        number = score
        if hasattr(score, "item"):
            number = score.item()
        if not isinstance(number, Real):
            raise _NoVerdict(_expected(num_completions, value))
        numbers.append(float(number))
    if len(numbers) != num_completions:
        raise _NoVerdict(_expected(num_completions, value))
    return tuple(numbers)


def _expected(num_completions: int, value: Any) -> str:
    return f"expected {num_completions} finite scores, got {_shown(value)}; repair the judge"


def _shown(value: Any) -> str:
    """A value as a part of a line: an array's text has several."""
    words = repr(value).split()
    return " ".join(words)[:200]


def _fault_in_count(
    groups: Sequence[RolloutGroup],
    value: Any,
) -> _NoVerdict | None:
    """What is wrong with the verdicts of a call for several groups; None when there is one for each."""
    if isinstance(value, list | tuple) and len(value) == len(groups):
        return None
    return _NoVerdict(
        f"expected one verdict for each of {len(groups)} groups, got {_shown(value)}; repair the judge"
    )


def _made(
    settings: config.PythonJudge,
    path: str,
) -> Any:
    """The user's object; a class is called with its settings, to a function they are bound."""
    target = import_target(settings)
    if not inspect.isclass(target):
        return _bound(target, settings)
    _check_class(target, settings)
    try:
        return target(**settings.settings)
    except (Exception, SystemExit) as error:
        reason = told(error, path)
        raise UserError(
            f"reward.judge {settings.target}: expected a judge, got {reason}; correct it or its settings"
        ) from error


def _bound(
    target: Any,
    settings: config.PythonJudge,
) -> Any:
    """A function with its settings; an object that is a judge already takes none (UserError)."""
    if not settings.settings:
        return target
    if hasattr(target, "judge"):
        names = ", ".join(settings.settings)
        raise UserError(
            f"reward.judge {settings.target}: expected no settings for an object that is made already, got {names}; "
            "name its class, or leave them out"
        )
    _check_shape(settings, callable(target))
    _check_settings(target, settings)
    return partial(target, **settings.settings)


def _check_settings(
    target: Callable[..., Any],
    settings: config.PythonJudge,
) -> None:
    """Refuse (UserError) settings that the class or function does not take."""
    try:
        signature = inspect.signature(target)
    except ValueError:
        # Written in C: its call will tell.
        return
    bind = signature.bind
    # A function's other arguments come with every group.
    if not inspect.isclass(target):
        bind = signature.bind_partial
    try:
        bind(**settings.settings)
    except TypeError as error:
        names = ", ".join(settings.settings) or "none"
        raise UserError(
            f"reward.judge {settings.target}: expected the settings of {signature}, got {names} ({error}); "
            "set them as keys of reward.judge"
        ) from error


def _check_class(
    target: type,
    settings: config.PythonJudge,
) -> None:
    """Refuse (UserError) a class whose objects are no judges, or that does not take its settings."""
    is_judge = hasattr(target, "judge")
    for base in target.__mro__:
        # Not `hasattr`: every class can be called itself.
        is_judge |= "__call__" in vars(base)
    _check_shape(settings, is_judge)
    _check_settings(target, settings)


def _check_shape(
    settings: config.PythonJudge,
    is_judge: bool,
) -> None:
    if not is_judge:
        raise UserError(
            f"reward.judge {settings.target}: expected a class with judge(group), or a function, got another; "
            "write that method"
        )


def _takes_many(method: Callable[..., Any]) -> bool:
    """Whether it takes all groups of a call, as our own judges do: its parameter is called so."""
    parameters = inspect.signature(method).parameters
    return "groups" in parameters


def _function(
    settings: config.PythonJudge,
    target: Any,
) -> AskOne:
    """A function, or an object that can be called, as one that takes a group."""
    _check_shape(settings, callable(target))
    try:
        make_arguments = arguments_of(target, settings.trl_text)
    except NotOurs as error:
        raise UserError(
            f"reward.judge {settings.target}: {error}; rename its parameters"
        ) from error

    def ask(group: RolloutGroup) -> Any:
        arguments = make_arguments(group)
        return target(**arguments)

    return ask
