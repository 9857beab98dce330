"""Estimate training and generation on devices that are not present."""
