"""What an endpoint was asked and what that cost, held against a budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.config.eyes import Budget, Endpoint
from common.endpoint.reply_cache import ChatReply
from common.errors import Halted


class Spending:
    """Counts requests and tokens, those of earlier replies included.

    Args:
        key: the setting of the budget, for messages.
    """

    def __init__(
        self,
        prices: Endpoint,
        budget: Budget,
        earlier: Iterable[ChatReply],
        key: str,
    ) -> None:
        self._prices = prices
        self._budget = budget
        self._key = key
        self.num_calls = 0
        self.num_replies = 0
        self.num_without_usage = 0
        self.num_prompt_tokens = 0
        self.num_completion_tokens = 0
        for reply in earlier:
            self.num_calls += 1
            self.add(reply)

    def add(self, reply: ChatReply) -> None:
        """Count a reply's tokens."""
        self.num_replies += 1
        self.num_without_usage += reply.prompt_tokens is None
        self.num_prompt_tokens += reply.prompt_tokens or 0
        self.num_completion_tokens += reply.completion_tokens or 0

    @property
    def cost(self) -> float | None:
        """In the currency of the prices, which are per million tokens; None where a price is not known."""
        prices = self._prices
        if prices.price_in is None or prices.price_out is None:
            return None
        cost_in = self.num_prompt_tokens * prices.price_in
        cost_out = self.num_completion_tokens * prices.price_out
        return (cost_in + cost_out) / 1e6

    def begin_call(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            Halted: the budget is used up, or is one of tokens and the endpoint counts none.
        """
        budget = self._budget
        if budget.calls is not None and self.num_calls >= budget.calls:
            raise self._used_up("calls", budget.calls, self.num_calls)
        num_tokens = self.num_prompt_tokens + self.num_completion_tokens
        if budget.tokens is not None and num_tokens >= budget.tokens:
            raise self._used_up("tokens", budget.tokens, num_tokens)
        cost = self.cost
        if budget.money is not None and cost is not None and cost >= budget.money:
            raise self._used_up("money", budget.money, cost)
        counts_tokens = budget.tokens is not None or budget.money is not None
        if counts_tokens and self.num_without_usage:
            raise Halted(
                f"{self._key}: expected an endpoint that counts its tokens, got a reply without `usage`; set a budget "
                "of calls alone"
            )
        self.num_calls += 1

    def _used_up(self, name: str, limit: float, spent: float) -> Halted:
        return Halted(
            f"{self._key}.{name}: expected to spend at most {limit:g}, got {spent:.6g}, so the budget is used up; "
            "raise it and continue with --resume"
        )

    def usage(self) -> dict[str, Any]:
        """Replies, tokens, and what they cost if both prices are known."""
        return {
            "num_replies": self.num_replies,
            "num_replies_without_usage": self.num_without_usage,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_completion_tokens": self.num_completion_tokens,
            "cost": self.cost,
        }
