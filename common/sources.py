"""Names of the sources that a run makes itself. Offline pairs bring names of their own (`bdhs`, `povid`, …).

A pair's source decides its loss and weight (`learner.source_losses`) and the metrics it is counted under.
"""

ONLINE = "online"
"""The best against the worst of a judged group."""

ONLINE_BDHS = "online_bdhs"
"""The prompt's reference answer against what BDHS draws from the current policy."""

RLOO = "rloo"
"""Two completions of a judged group whose `scores` are their leave-one-out advantages, not judge scores."""
