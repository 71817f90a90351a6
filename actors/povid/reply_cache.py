"""A language model's replies, kept on disk by the hash of the request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from common.journal import Journal, read_events


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's text.

    Attributes:
        text: as the endpoint gave it, without the API key.
        cut_off: the reply ended at `max_tokens`.
        prompt_tokens: the endpoint's own count; None if it gives none. So is `completion_tokens`.
        cached: whether it was paid for earlier. Not on disk.
    """

    text: str
    cut_off: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool = False


class ReplyCache:
    """Replies by the hash of the request, one JSON line each, durable when `put` returns."""

    def __init__(self, path: Path) -> None:
        self.replies: dict[str, Reply] = {}
        for event in read_events(path):
            # A line of another program, or one that a crash tore, is asked for again.
            try:
                reply = Reply(
                    text=event["text"],
                    cut_off=event["cut_off"],
                    prompt_tokens=event["prompt_tokens"],
                    completion_tokens=event["completion_tokens"],
                    cached=True,
                )
                self.replies[event["key"]] = reply
            except (TypeError, KeyError):
                continue
        self._journal = Journal(path)

    def put(
        self,
        key: str,
        reply: Reply,
    ) -> None:
        """Write a reply to disk, then make it available."""
        self._journal.write(
            "reply",
            key=key,
            text=reply.text,
            cut_off=reply.cut_off,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        # A reply is paid for: it must survive a crash before anybody builds on it.
        self._journal.sync()
        self.replies[key] = replace(reply, cached=True)

    def close(self) -> None:
        self._journal.close()
