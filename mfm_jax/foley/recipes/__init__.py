"""Recipes of the networks that learn from the labels of the Foley world."""
