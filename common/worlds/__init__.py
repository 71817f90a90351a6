"""What the rendered worlds (`common.shapes`, `common.tabletop`) have in common.

scenes     the grid, and the split that a layout belongs to
questions  in which order POPE asks about what is absent
answers    a yes or a no, as a judge of a world reads it
truth      what of a prompt's truth is the same in both

policy     LLaVA-1.5 configuration, tokenizer, processor, saving under the hub's weight names
batches    pictures and texts -> tensors
training   the optimiser's settings, the tower's stage, the loss of a batch of text
decode     responses, log-probs
probe      what a linear readout sees in the tower's features
pretraining   the command line of the programs that make a policy
"""
