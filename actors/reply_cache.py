"""A language model's replies, kept on disk by the hash of what was asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from common.journal import Journal, read_events


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's text. Token counts are the endpoint's own (None where it gives none); `cut_off` at `max_tokens`."""

    text: str
    cut_off: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool = False


_KEPT = ("text", "cut_off", "prompt_tokens", "completion_tokens")


class ReplyCache:
    """Replies by the hash of what was asked, one JSON line each, durable when `put` returns."""

    def __init__(self, path: Path) -> None:
        self.replies: dict[str, Reply] = {}
        for event in read_events(path):
            try:
                self.replies[event["key"]] = Reply(
                    **{name: event[name] for name in _KEPT}, cached=True
                )
            except (TypeError, KeyError):
                continue
        self._journal = Journal(path)

    def put(self, key: str, reply: Reply) -> None:
        self._journal.write(
            "reply", key=key, **{name: getattr(reply, name) for name in _KEPT}
        )
        self._journal.sync()
        self.replies[key] = replace(reply, cached=True)

    def close(self) -> None:
        self._journal.close()
