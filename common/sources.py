"""Names of the sources whose pairs a run makes itself. Offline pairs have names of their own (`bdhs`, `povid`, …).

A pair's source decides its loss and weight (`learner.source_losses`), and the metrics that it is counted under.
"""

ONLINE = "online"
"""The best completion of a judged group against the worst."""

ONLINE_BDHS = "online_bdhs"
"""The prompt's reference answer against one that BDHS samples from the current policy."""

RLOO = "rloo"
"""Two completions of a judged group whose `scores` are their leave-one-out advantages, not judge scores."""

GRPO = "grpo"
"""The same with advantages over the group's mean, and with the log-probs that the tokens were sampled under."""

WITH_ADVANTAGES = frozenset({RLOO, GRPO})
"""Sources whose sides are trained on each for itself, by its advantage: they may be equal, or end at once."""
