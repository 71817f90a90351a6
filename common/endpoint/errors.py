"""Why there is no reply."""

from __future__ import annotations


class EndpointError(RuntimeError):
    """There is no reply.

    Attributes:
        reason: the key that it is counted under, see `common/endpoint/chat_endpoint.py`.
        retryable: whether the same request may be answered a moment later.
        retry_after_s: the pause that the endpoint asked for.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        retryable: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.retry_after_s = retry_after_s
