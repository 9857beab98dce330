"""Write the timestamps that TimeChat reads beside each frame."""

from collections.abc import Iterable


def timestamp_sentences(seconds: Iterable[float]) -> list[str]:
    """Return the sentence that TimeChat's image Q-Former reads beside each frame."""
    return [f"This frame is sampled at {round(float(s), 1)} second." for s in seconds]
