"""World 2: things on a table, true text, biased scenes, and a tiny policy that leans on the usual (docs/world2.md).

scenes         what is on a table; what is usual; training scenes follow it, test scenes do not
render         a scene -> 60 x 60 noisy pixels
language       captions, and reading texts back into mentions
conversations  questions, answers, and the one distribution of training text and prompts
prompts        all this as the records the rest of the project works with
truth, claims, faults, marks, corrupter   what is known of a prompt, and what is wrong with an answer

model          tokenizer and policy, made of the parts in common.worlds and of the shapes world's weights
training       the stages of the recipe          pretrain   runs them: python -m common.tabletop.pretrain
probe          what sight knows and what the policy says: python -m common.tabletop.probe
policy/        the shipped checkpoint, a plain Hugging Face directory
"""
