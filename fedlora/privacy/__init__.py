"""Differential privacy: per-record gradients, noise, accounting."""
