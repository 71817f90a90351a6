"""What a run will take: memory, work and seconds, from its config and the model's config file alone."""
