"""How good a checkpoint is, and what is in it."""
