"""Batches of training data: shuffled, augmented, taught by another network."""
