"""The training side: preference losses, log-probs, collation, replay, engines, and the learner that ties them."""
