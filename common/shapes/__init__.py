"""A small world of coloured shapes, and a tiny policy that sees it well and hallucinates what its training text said.

    scenes     what is in a picture; splits that share no layout; training scenes bring the usual partners together
    render     a scene -> 72 x 72 pixels
    language   true and noisy captions, and reading captions back into mentions
    questions  POPE's yes/no questions in three splits
    prompts    all this as the records the rest of the project works with

    model      the words of its tokenizer; all else of a policy is in common.worlds
    lessons    what is taught of a scene  training   the stages of the recipe
    probe      does it see, does it imagine, does the picture matter
    policy/    the shipped checkpoint, a plain Hugging Face directory
    pretrain   makes it: python -m common.shapes.pretrain

The policy names nearly every object with the right colour and place. It also names the usual partner of an object when
the partner is absent, because its training text did so in `language.NOISE_SHARE` of such pictures. Sampling gives
captions with and without the imagined object for the same picture. So preference training has a signal, and what it
has to unlearn comes from text, not from poor sight.
"""
