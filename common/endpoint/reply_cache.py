"""A language model's replies, kept on disk by the hash of the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.journal import Journal, read_events


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A model's text.

    Attributes:
        text: as the endpoint gave it, without the API key.
        cut_off: the reply ended at `max_tokens`.
        prompt_tokens: the endpoint's own count; None if it gives none. So is `completion_tokens`.
        first_word: log-probs (nats) of what its first word may be, where they were asked for.
        cached: whether it was paid for earlier. Not on disk.
    """

    text: str
    cut_off: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    first_word: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False


class ReplyCache:
    """Replies by the hash of the request, one JSON line each, durable when `put` returns.

    Without a path they are kept in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.replies: dict[str, ChatReply] = {}
        self._journal = None
        if path is not None:
            self._read(path)
            self._journal = Journal(path)

    def _read(self, path: Path) -> None:
        for event in read_events(path):
            # A line of another program, or one that a crash tore, is asked for again.
            try:
                reply = ChatReply(
                    text=event["text"],
                    cut_off=event["cut_off"],
                    prompt_tokens=event["prompt_tokens"],
                    completion_tokens=event["completion_tokens"],
                    # Older files have none.
                    first_word=event.get("first_word", {}),
                    cached=True,
                )
                self.replies[event["key"]] = reply
            except (TypeError, KeyError):
                continue

    def put(
        self,
        key: str,
        reply: ChatReply,
    ) -> None:
        """Write a reply to disk, then make it available."""
        if self._journal is not None:
            self._write(self._journal, key, reply)
        self.replies[key] = replace(reply, cached=True)

    def _write(self, journal: Journal, key: str, reply: ChatReply) -> None:
        journal.write(
            "reply",
            key=key,
            text=reply.text,
            cut_off=reply.cut_off,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            first_word=dict(reply.first_word),
        )
        # A reply is paid for: it must survive a crash before anybody builds on it.
        journal.sync()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
