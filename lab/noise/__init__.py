"""Noise of the mini-batch gradient: covariance, Fisher matrices, curvature of batches, tails, linear stability."""
