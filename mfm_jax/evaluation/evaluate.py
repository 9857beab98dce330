"""Evaluation of generated sound against real sound, by one call: `evaluate`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.errors import MediaError, UsageError, UserError, system_reason
from mfm_jax.evaluation import sets
from mfm_jax.evaluation.assemble import assemble
from mfm_jax.evaluation.cavp import Towers, add_cavp, why_not
from mfm_jax.evaluation.clips import Pairing, Sound, list_sounds, pair, system_names
from mfm_jax.evaluation.measure import Measured, Picture, Wave, measure
from mfm_jax.evaluation.networks import Heard, hear, open_ears
from mfm_jax.evaluation.report import REFERENCE, Report
from mfm_jax.inference.stream import read_ahead
from mfm_jax.runtime.failures import FailureLog
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.files import check_folder, new_folder
from mfm_jax.storage.paths import user_path
from mfm_jax.typing import Float

AHEAD = 4
"""Clips that are read and measured ahead, each in a thread."""


class EvaluationError(UserError):
    """Some clips could not be evaluated; `failures` says why, a line for each."""

    exit_code = 1

    def __init__(self, failures: Sequence[str], report: Report) -> None:
        super().__init__("; ".join(failures))
        self.failures, self.report = tuple(failures), report


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation."""

    bundle: Bundle | None = None  # whose networks are used; no network scores if None
    published: bool = False  # add what published scripts compute where ours differ
    onsets: Path | None = None  # folder of annotated times, NAME.txt
    precision: str = "float32"
    batch: int | None = None


def evaluate(
    generated: str | Path | Sequence[str | Path],
    reference: str | Path,
    out: str | Path,
    *,
    bundle: str | Path | None = None,
    verify: bool = True,
    published: bool = False,
    onsets: str | Path | None = None,
    precision: str = "float32",
    batch: int | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Report:
    """Score generated sounds against real ones and write a report; return it.

    Clips are paired by name. The folder `out` gets `report.json`, `summary.csv`, `clips.csv`, and
    `index.html`, a page to read and hear in a browser. It appears when it is complete, and takes
    the place of an earlier report.

    Args:
        generated: folders or manifests, one for each system, as PATH or NAME=PATH. With several,
            every other one is compared with the first.
        reference: folder or manifest of the real sounds.
        bundle: a folder whose networks hear the clips; without it there are no scores of networks.
        verify: compare the bundle's weights with their checksums.
        published: add what the published scripts compute where our definitions differ.
        onsets: folder of annotated onsets: NAME.txt, seconds in the first column. Without it the
            true onsets are those detected in the real sound.
        precision: of the networks.
        batch: clips that the networks hear at once.
        command: the command line, for the record.
        progress: counts clips.

    Raises:
        UserError: an argument is wrong, or names do not match; nothing is written then.
        EvaluationError: some clips could not be read; the report is of the others.
    """
    given = [generated] if isinstance(generated, str | Path) else generated
    named = system_names([str(source) for source in given])
    sources = {REFERENCE: user_path(reference), **named}
    listed = {side: list_sounds(source) for side, source in sources.items()}
    pairing = pair(
        listed.pop(REFERENCE), listed, {side: str(source) for side, source in sources.items()}
    )
    opened = None if bundle is None else Bundle.open(bundle, verify=verify)
    folder = None if onsets is None else user_path(onsets)
    settings = Settings(opened, published, folder, precision, batch)
    return evaluate_pairs(pairing, user_path(out), settings, command=command, progress=progress)


def evaluate_pairs(
    pairing: Pairing,
    out: Path,
    settings: Settings,
    *,
    contacts: Mapping[str, Sequence[float]] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Report:
    """Score paired sounds and write a report; see `evaluate`.

    Args:
        contacts: times of visible contacts by clip in seconds, which the page marks. The true
            onsets are still those of `settings.onsets` or of the real sound.
    """
    from mfm_jax.evaluation.page import Page

    started = time.monotonic()
    check_report_folder(out)
    annotated = _annotated(pairing.names, settings.onsets)
    if progress is not None:
        progress.total = len(pairing.names)
    with new_folder(out, replace=True, last="report.json") as part:
        page = Page(part)
        clips, failed = _measure_all(pairing, annotated, settings, page, part, progress)
        if not clips:
            raise MediaError(f"no clip can be evaluated ({failed[0][1]})")
        if contacts is not None:
            for clip in clips:
                clip.contacts = sorted(map(float, contacts[clip.name]))
        report = assemble(
            pairing,
            clips,
            failed,
            _hear(pairing, clips, settings),
            bundle=settings.bundle,
            published=settings.published,
        )
        report.protocol |= {
            "command": command,
            "seconds": round(time.monotonic() - started, 1),
            "onsets": str(settings.onsets) if settings.onsets else "detected in the real sound",
        }
        report.write(part)
        page.write(report)
    if failed:
        raise EvaluationError([f"{clip}: {why}" for clip, why in failed], report)
    return report


def check_report_folder(out: Path) -> None:
    """Check that a report can be written into a folder: it is new, empty, or an earlier report.

    Raises:
        UsageError: it holds something else, which would be lost.
        WriteError: nothing can be written there.
    """
    check_folder(out)
    if out.is_dir() and any(out.iterdir()) and not (out / "report.json").is_file():
        raise UsageError(f"{out} holds files and no earlier report: choose a new folder")


def _annotated(names: Sequence[str], folder: Path | None) -> dict[str, Float[np.ndarray, " n"]]:
    """Read the annotated onsets of every clip."""
    if folder is None:
        return {}
    files = {name: folder / f"{name}.txt" for name in names}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise UsageError(
            f"{folder} lacks the onsets of {len(missing)} of {len(names)} clips ({shown}): write "
            "NAME.txt with a time in seconds on each line"
        )
    return {name: _read_times(file) for name, file in files.items()}


def _read_times(file: Path) -> Float[np.ndarray, " n"]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({system_reason(error)})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is no text: write a time in seconds on each line") from None
    times = []
    for number, line in enumerate(lines, 1):
        if words := line.replace(",", " ").split():
            try:
                times.append(float(words[0]))
            except ValueError:
                times.append(-1.0)
            if not 0 <= times[-1] < np.inf:
                raise UsageError(f"{file}, line {number}: {words[0]!r:.50} is no time in seconds")
    return np.sort(np.array(times, float))


def _measure_all(
    pairing: Pairing,
    annotated: Mapping[str, Float[np.ndarray, " n"]],
    settings: Settings,
    page: Any,
    folder: Path,
    progress: Progress | None,
) -> tuple[list[Measured], list[tuple[str, str]]]:
    """Score every clip; return also those that fail, and why."""
    log = FailureLog(folder)

    def one(number_and_name: tuple[int, str]) -> Iterator[Measured | tuple[str, str]]:
        number, name = number_and_name
        try:
            systems = {system: its[name] for system, its in pairing.systems.items()}
            yield _measure_one(
                name, pairing.reference[name], systems, annotated.get(name), settings, page, number
            )
        except Exception as error:
            yield name, log.reason(name, error)

    clips: list[Measured] = []
    failed: list[tuple[str, str]] = []
    with closing(read_ahead(enumerate(pairing.names), one, ahead=AHEAD)) as found:
        for _, result in found:
            if isinstance(result, Measured):
                clips.append(result)
            else:
                failed.append(result)
                if progress is not None:
                    progress.say(f"failed: {result[0]}: {result[1]}")
            if progress is not None:
                progress.advance()
    return clips, failed


def _measure_one(
    name: str,
    real: Sound,
    systems: Mapping[str, Sound],
    annotated: Float[np.ndarray, " n"] | None,
    settings: Settings,
    page: Any,
    number: int,
) -> Measured:
    with ExitStack() as held:
        real = held.enter_context(real.here())
        systems = {k: held.enter_context(sound.here()) for k, sound in systems.items()}
        reference = Wave.read(real)
        waves = {system: Wave.read(sound) for system, sound in systems.items()}
        pictures = (Picture.read(sound) for sound in (real, *systems.values()))
        picture = next((p for p in pictures if p is not None), None)
        measured = measure(
            name, reference, waves, picture, annotated=annotated, published=settings.published
        )
        measured.media = page.add(number, {REFERENCE: reference, **waves}, picture)
    return measured


def _hear(pairing: Pairing, clips: Sequence[Measured], settings: Settings) -> dict[str, Heard]:
    """Return what the networks of the bundle hear, by side; empty without a bundle."""
    if settings.bundle is None:
        return {}
    from mfm_jax.inference.generate import layout_and_batch  # slow to import, and only needed here

    layout, batch = layout_and_batch(settings.batch)
    bundle, precision = settings.bundle, jnp.dtype(settings.precision)
    load = partial(bundle.load, dtype=precision, sharding=lambda *_: layout.replicated)
    if "synchformer" in bundle.entries:
        from mfm_jax.evaluation.desync import add_desync

        add_desync(load("synchformer"), pairing, clips, layout=layout, batch=batch)
    if why_not(bundle) is None:
        towers = Towers(bundle.config("cavp"), load("cavp"), load("cavp_audio"))
        add_cavp(towers, pairing, clips, layout=layout, batch=batch)
    sides = {REFERENCE: pairing.reference, **pairing.systems}
    lengths = {clip.name: min(clip.seconds.values()) for clip in clips}
    ears = open_ears(settings.bundle, layout, settings.precision, exact=settings.published)
    names = [clip.name for clip in clips]
    return sets.sides_heard(
        [hear(ear, sides, names, lengths, layout=layout, batch=batch) for ear in ears]
    )
