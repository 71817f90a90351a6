"""The learner's part of a run checkpoint: any number of ranks reads what any other has written.

learner.json                 what is equal on all ranks (`header.py`)
rank_0_000.safetensors, …    stretches of flattened parameters: master weights and Adam's moments (`stretches.py`)
rank_0_random.safetensors    a rank's random state (`random_state.py`)

Nothing in it is pickled. Frozen parameters are not in it: they are those of `model.path`. Nor is a loss scale: weights
are float32 or bfloat16, and their gradients need none. The caller renames the whole folder into place.
"""
