"""Whether learner and engines compute the same: the answers that both score, and the figures of a push."""
