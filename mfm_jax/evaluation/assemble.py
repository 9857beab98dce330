"""Assemble a report from scores of clips: figures with intervals, comparisons, ranks, notes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mfm_jax.bundle import Bundle
from mfm_jax.evaluation import catalogue, sets
from mfm_jax.evaluation.catalogue import Metric
from mfm_jax.evaluation.cavp import why_not
from mfm_jax.evaluation.clips import Pairing
from mfm_jax.evaluation.figures import (
    Difference,
    mean_difference,
    mean_figure,
    ranks,
    set_difference,
    set_figure,
)
from mfm_jax.evaluation.measure import Measured
from mfm_jax.evaluation.networks import Heard
from mfm_jax.evaluation.protocol import notes, protocol
from mfm_jax.evaluation.report import REFERENCE, Report
from mfm_jax.typing import Float

ORDER = (catalogue.TIMING, catalogue.SPECTRUM, catalogue.LEVEL, catalogue.NETWORKS)
NEEDS_CNN14 = "the bundle has no cnn14: add it with mfm convert"
NEEDS_MAE = "the bundle has no audiomae: add it with mfm convert"


def assemble(
    pairing: Pairing,
    clips: list[Measured],
    failed: list[tuple[str, str]],
    heard: Mapping[str, Heard],
    *,
    bundle: Bundle | None = None,
    published: bool = False,
) -> Report:
    """Return the report of measured clips.

    Args:
        failed: clips that could not be measured, and why.
        heard: what networks hear, by side, in the order of `clips`; empty without networks.
    """
    systems = list(pairing.systems)
    _add_network_scores(clips, heard, systems, published=published)
    present = {key for clip in clips for scores in clip.scores.values() for key in scores}
    known = (
        *catalogue.SIGNAL,
        catalogue.DESYNC,
        *catalogue.CAVP,
        *catalogue.LOGITS,
        *catalogue.LANGUAGE_OF_AUDIO,
        *catalogue.PUBLISHED_SIGNAL,
        *catalogue.PUBLISHED_LOGITS,
    )
    of_clips = [metric for metric in known if metric.key in present]
    figures = {
        side: {
            metric.key: mean_figure(metric, _values(clips, side, metric))
            for metric in of_clips
            if side != REFERENCE or metric.alone
        }
        for side in (*systems, REFERENCE)
    }
    of_sets = _set_results(heard, systems, published=published)
    listed = {metric.key: metric for metric in of_clips}
    for side, results in of_sets.items():
        for metric, score, width in results:
            figures[side][metric.key] = set_figure(metric, score, len(clips), width)
            listed.setdefault(metric.key, metric)
    metrics = sorted(
        listed.values(), key=lambda m: ORDER.index(m.group) if m.group in ORDER else len(ORDER)
    )
    placed = {
        system: dict(
            zip(
                (clip.name for clip in clips),
                ranks(of_clips, [clip.scores[system] for clip in clips]).tolist(),
                strict=True,
            )
        )
        for system in systems
    }
    return Report(
        protocol(pairing, clips, bundle, {"published": published}),
        metrics,
        systems,
        figures,
        _comparisons(of_clips, clips, systems, of_sets),
        sorted(clips, key=lambda clip: placed[systems[0]][clip.name]),
        placed,
        _not_computed(bundle, clips),
        notes(clips),
        failed,
    )


def _add_network_scores(
    clips: Sequence[Measured],
    heard: Mapping[str, Heard],
    systems: Sequence[str],
    *,
    published: bool,
) -> None:
    for system in systems if heard else ():
        found = sets.clip_scores(heard[REFERENCE], heard[system], published=published)
        for key, values in found.items():
            for clip, value in zip(clips, values, strict=True):
                clip.scores[system][key] = float(value)


def _values(clips: Sequence[Measured], side: str, metric: Metric) -> Float[np.ndarray, " N"]:
    return np.array([clip.scores[side].get(metric.key, np.nan) for clip in clips], float)


def _set_results(
    heard: Mapping[str, Heard], systems: Sequence[str], *, published: bool
) -> dict[str, list[sets.SetResult]]:
    if not heard:
        return {}
    found = {
        system: sets.set_scores(heard[REFERENCE], heard[system], published=published)
        for system in systems
    }
    for side, its in heard.items():
        found.setdefault(side, []).extend(sets.own_scores(its, published=published))
    return found


def _comparisons(
    metrics: Sequence[Metric],
    clips: Sequence[Measured],
    systems: Sequence[str],
    set_results: Mapping[str, Sequence[sets.SetResult]],
) -> list[dict[str, Any]]:
    """Compare every system but the first with the first, on the same clips."""
    first, *others = systems
    found = []
    for system in others:
        scores: dict[str, Difference] = {}
        for metric in metrics:
            if metric.per_clip:
                pair_of = (_values(clips, side, metric) for side in (system, first))
                scores[metric.key] = mean_difference(metric, *pair_of)
        both = zip(set_results.get(system, ()), set_results.get(first, ()), strict=True)
        for (metric, ours, width), (_, theirs, _) in both:
            scores[metric.key] = set_difference(metric, ours, theirs, len(clips), width)
        found.append({"system": system, "against": first, "scores": scores})
    return found


def _not_computed(bundle: Bundle | None, clips: Sequence[Measured]) -> list[tuple[str, str]]:
    cnn14 = "FD, KL, inception score, KID, KAD of PANNs Cnn14"
    mae = "FD, KID, KAD of AudioMAE, LOA error and retrieval"
    if bundle is None:
        why = "no bundle is given: name one with --bundle"
        found = [(cnn14, why), (mae, why)]
    else:
        found = [(cnn14, NEEDS_CNN14)] * ("cnn14" not in bundle.entries)
        found += [(mae, NEEDS_MAE)] * ("audiomae" not in bundle.entries)
    if all(clip.fps is None for clip in clips):
        found.append(("AV-Align", "no side has videos"))
    elif lacking := sum(clip.fps is None for clip in clips):
        found.append((f"AV-Align of {lacking} clips", "no side has a video of them"))
    if not any("cavp_cosine" in scores for clip in clips for scores in clip.scores.values()):
        reason = why_not(bundle) or "no side has videos"
        found.append(("CAVP cosine and retrieval", reason))
    if not any("desync" in scores for clip in clips for scores in clip.scores.values()):
        found.append(("DeSync", "no bundle with a synchformer is given: add it with mfm convert"))
    return found
