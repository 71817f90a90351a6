"""From the learner's ranks to engines, a bucket at a time."""
