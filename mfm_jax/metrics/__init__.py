"""Scores for generated sound: pure functions on arrays, in numpy.

`onsets` and `av_align` measure timing; `distances` compares sets of embeddings or logits of a
classifier; `similarity` compares one spectrogram with another; `spectra` holds the front ends.

Published scores have traps that change results: a late onset that counts as a hit, a silent clip
with average precision one. Where the published definition and the sensible one differ, the
function with the plain name is the sensible one and `published` in the name marks the other, which
reproduces the authors' code so that numbers in papers can be compared.
"""
