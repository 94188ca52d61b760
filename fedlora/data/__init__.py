"""Data: sources, splits and partitioners."""
