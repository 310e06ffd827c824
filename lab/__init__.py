"""A lab for the loss landscape of neural networks while they train."""

__version__ = "0.1.0"
