"""Packs of clips, embeddings and logits like the public one in tests/reference, of any seed."""

from dataclasses import dataclass

import numpy as np

RATE = 16_000
SECONDS = 2.5
KINDS = (
    "accurate", "shifted", "missing", "extra", "doubles", "early", "noisy", "silent", "identical",
    "no_events", "loud",
)  # fmt: skip
"""How the generated clip of a pair differs from the real one."""
N, WIDTH, CLASSES = 24, 40, 527


@dataclass(frozen=True)
class Pair:
    """A real and a generated sound at 16 kHz, without their means as in audioldm_eval."""

    kind: str
    reference: np.ndarray
    generated: np.ndarray
    true_seconds: np.ndarray  # of the real events


@dataclass(frozen=True)
class Pack:
    """What scores are computed of."""

    pairs: list[Pair]
    embeddings: tuple[np.ndarray, np.ndarray]
    logits: tuple[np.ndarray, np.ndarray]


def pack(seed: int) -> Pack:
    """Return the pack of a seed."""
    rng = np.random.default_rng([20260101, seed])
    mixing = rng.normal(size=(8, WIDTH))
    embeddings = tuple(
        np.maximum(rng.normal(size=(N, 8)) @ mixing + shift, 0).astype(np.float32)
        for shift in (0.0, 0.3)
    )
    common = rng.normal(-4, 2, CLASSES)
    logits = tuple((common + rng.normal(0, 1.5, (N, CLASSES))).astype(np.float32) for _ in range(2))
    return Pack([_pair(kind, rng) for kind in KINDS], embeddings, logits)


def _pair(kind: str, rng: np.random.Generator) -> Pair:
    times = np.sort(rng.choice(np.arange(0.3, 2.3, 0.2), 5, replace=False)) + rng.uniform(0, 0.05)
    made = {
        "shifted": times + rng.uniform(0.05, 0.3),
        "missing": times[::2],
        "extra": np.sort(np.append(times, rng.uniform(0.2, 2.3, 3))),
        "doubles": np.sort(np.append(times, times + rng.uniform(0.028, 0.045))),
        "early": times - 0.03,
    }.get(kind, times + rng.uniform(-0.02, 0.02, len(times)))
    noise = 0.05 if kind == "noisy" else 0.002
    state = rng.integers(1 << 30)
    real = _clip(times if kind != "no_events" else times[:0], 0.002, state)
    if kind == "identical":
        generated = real
    elif kind == "silent":
        generated = np.zeros_like(real)
    else:
        generated = _clip(made, noise, state + 1)
        generated = np.clip(3 * generated + 0.1, -1, 1) if kind == "loud" else generated
    sounds = (np.round(wave * 32767) / 32768 for wave in (real, generated))
    centred = ((wave - wave.mean()).astype(np.float32) for wave in sounds)
    return Pair(kind, *centred, true_seconds=times if kind != "no_events" else times[:0])


def _clip(times: np.ndarray, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wave = noise * rng.standard_normal(round(SECONDS * RATE))
    for time in times:
        start, size = round(time * RATE), 3200
        burst = rng.uniform(0.2, 0.8) * rng.standard_normal(size) * np.exp(-np.arange(size) / 500)
        part = wave[start : start + size]
        part += 0.3 * burst[: len(part)]
    return np.clip(wave, -1, 1)
