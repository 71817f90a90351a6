"""A user's class or function, by `module:Name` or `file.py:Name`: found, read and imported; errors name its lines.

The controller reads the file and sends its text along with the config, so workers on other machines need no copy. A
module in the folder that the command was started in counts as a file. Any other module is imported by its name, and has
to be there on every machine.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.abc
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from common.config import PythonJudge, UserCode
from common.errors import UserError
from common.paths import expand_home
from reward.judges import calls

KEY = "reward.judge.target"
OUR_FILES = (__file__, calls.__file__)
"""Nobody looks for a mistake of their own in these."""


def read_code(target: str) -> UserCode | None:
    """The text of the target's file; None for a module that is not in the present folder.

    Raises:
        UserError: the file cannot be read.
    """
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        path = Path(expand_home(place)).resolve()
    else:
        path = Path(f"{place}.py").resolve()
        if not path.is_file():
            return None
    try:
        return UserCode(str(path), path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{KEY}: expected a Python file, got {place} ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{KEY}: expected a Python file, got {place}, which is no UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error


def import_target(settings: PythonJudge) -> Any:
    """The user's object.

    Raises:
        UserError: it cannot be imported (the line names the user's file and line), or has no such name.
    """
    place, _, name = settings.target.rpartition(":")
    code = settings.code or read_code(settings.target)
    try:
        if code is None:
            module = importlib.import_module(place)
        else:
            module = _module_of(code)
    # A script without a main guard may even end the process.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == place:
            raise UserError(
                f"{KEY}: expected module:Name or file.py:Name, got {place}, which is neither a file of this folder nor "
                "installed; check the name"
            ) from error
        path = "" if code is None else code.path
        raise UserError(
            f"reward.judge {settings.target}: expected code that can be imported, got {told(error, path)}; correct it"
        ) from error
    if not hasattr(module, name):
        raise UserError(
            f"{KEY}: expected a class or function of {place}, got {name}, which is not there"
            f"{_suggestion(name, module)}"
        )
    return getattr(module, name)


def identity_of(settings: PythonJudge) -> str:
    """The source of the target's module, which a cache of its verdicts depends on."""
    code = settings.code or read_code(settings.target)
    if code is not None:
        return code.text
    module = sys.modules[import_target(settings).__module__]
    path = Path(module.__file__ or "")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def told(error: BaseException, path: str) -> str:
    """An exception in a few words, with the last line of the user's files that it passed.

    Args:
        path: of the user's file, whose neighbours count, too; without one the last line of all is told.
    """
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        # The text of an error is the user's code, too.
        lines = []
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    # The code that is wrong never ran: the error itself says where it stands.
    if isinstance(error, SyntaxError) and error.filename:
        message = f"{type(error).__name__}: {error.msg}"
        return f"{message} ({error.filename}, line {error.lineno})"
    frames: list[traceback.FrameSummary] = []
    for frame in traceback.extract_tb(error.__traceback__):
        # Neither ours nor Python's own importing.
        is_machinery = frame.filename.startswith("<frozen")
        if not is_machinery and frame.filename not in OUR_FILES:
            frames.append(frame)
    # Neighbours of the file are the user's as well.
    folder = Path(path).parent
    of_user = [
        frame for frame in frames if path and Path(frame.filename).parent == folder
    ]
    if not frames:
        return message
    frame = (of_user or frames)[-1]
    return f"{message} ({frame.filename}, line {frame.lineno})"


class _ShippedText(importlib.abc.ExecutionLoader):
    """Loads a module from a text that came along, and shows its lines in tracebacks."""

    def __init__(self, code: UserCode) -> None:
        self._code = code

    def get_filename(self, fullname: str) -> str:
        return self._code.path

    def get_source(self, fullname: str) -> str:
        return self._code.text


def _module_of(code: UserCode) -> ModuleType:
    """The module of a file, which is run once per process and text."""
    digest = hashlib.sha256(f"{code.path}\0{code.text}".encode()).hexdigest()
    # Not the file's name, which may be that of a library: `json.py`.
    name = f"judge_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    folder = str(Path(code.path).parent)
    if folder not in sys.path:
        # Files beside it, where this machine has them. Last, so that they hide no library.
        sys.path.append(folder)
    loader = _ShippedText(code)
    spec = importlib.util.spec_from_loader(name, loader, origin=code.path)
    assert spec is not None, "a loader was given"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look their module up while it is still being run.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _suggestion(name: str, module: ModuleType) -> str:
    public = [other for other in vars(module) if not other.startswith("_")]
    near = difflib.get_close_matches(name, public, 1)
    return f"; did you mean {near[0]}?" if near else "; check the name"
