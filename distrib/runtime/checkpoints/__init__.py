"""Checkpoints: written whole in the background, on record, verified, read by any strategy."""
