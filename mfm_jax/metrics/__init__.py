"""Score generated sound: pure functions on numpy arrays.

`onsets` and `av_align` measure timing; `distances` compares sets of embeddings or logits of a
classifier; `similarity` compares one spectrogram with another; `spectra` holds the front ends.

Published scores have faults that change results: a late onset counts as a hit, a silent clip has
average precision one. Where we correct a published definition, the function with the plain name is
corrected, and the one with `published` in its name reproduces the authors' code, for comparison
with the numbers in papers.
"""
