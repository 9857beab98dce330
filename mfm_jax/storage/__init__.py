"""Atomic file writes, folders of arrays, weights by name, and checkpoints."""
