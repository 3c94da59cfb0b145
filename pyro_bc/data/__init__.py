"""Batches of training data: shuffled, augmented, taught by another network."""

from .augment import Affine, ShiftAndFlip
from .batches import Batches
from .streamed import Streamed
from .teacher import TaughtBatches

__all__ = ["Affine", "Batches", "ShiftAndFlip", "Streamed", "TaughtBatches"]
