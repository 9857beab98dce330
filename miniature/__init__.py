"""Trains the whole system at small size on the Foley world, scores it and runs experiments.

`python -m miniature -h` lists the commands; `docs/miniature.md` has the results.
"""
