"""Maximising the ELBO: effect handlers, the training step, the loop, checkpoints."""
