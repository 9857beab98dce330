"""What is seen and heard of a finished job: spectrograms, onsets, the video's own sound.

All of it is made when somebody first looks at the job.
"""

import json
from contextlib import suppress
from pathlib import Path

from mfm_jax.errors import MediaError
from mfm_jax.evaluation.measure import Wave
from mfm_jax.evaluation.page import spectrogram
from mfm_jax.media.audio import RATE, write_sound
from mfm_jax.media.loudness import SILENT, loudness
from mfm_jax.media.sounds import read_sound, sound_rate
from mfm_jax.metrics import onsets
from mfm_jax.serve.jobs import SOUND, Job
from mfm_jax.serve.schemas import Analysis, Sound
from mfm_jax.storage.files import write_text

ORIGINAL, ANALYSIS = "original.wav", "analysis.json"
PICTURES = {SOUND: "sound.png", ORIGINAL: "original.png"}
"""The spectrogram of each sound."""
FASTEST = 48_000
"""Most samples a second of the video's own sound as it is sent."""


def examined(job: Job) -> Path:
    """Make what is missing in the folder of a finished job; return the file of its analysis."""
    file = job.folder / ANALYSIS
    with job.examining:
        if not file.exists():
            found = [_described(job, "generated", SOUND, _read(job.folder / SOUND))]
            if job.info.has_audio:
                with suppress(MediaError):  # the new sound is there all the same
                    own = _read(job.source, job.info.seconds)
                    write_sound(job.folder / ORIGINAL, own.own, own.rate)
                    found.append(_described(job, "original", ORIGINAL, own))
            analysis = Analysis(seconds=job.info.seconds, sounds=found)
            write_text(file, json.dumps(analysis.model_dump()))
    return file


def _read(path: Path, seconds: float | None = None) -> Wave:
    rate = min(sound_rate(path), FASTEST) or RATE  # without a sound, it is told when it is read
    return Wave(read_sound(path, rate, seconds=seconds), rate)


def _described(job: Job, name: str, file: str, wave: Wave) -> Sound:
    """Draw a sound and describe it."""
    spectrogram(wave.at_16k).save(job.folder / PICTURES[file])
    level = loudness(wave.own, wave.rate)
    return Sound(
        name=name,
        rate=wave.rate,
        seconds=wave.seconds,
        onsets=[round(float(at), 4) for at in wave.onsets / onsets.RATE],
        loudness=round(level, 2) if level > SILENT else None,
        sound=f"/api/jobs/{job.id}/{file}",
        picture=f"/api/jobs/{job.id}/{PICTURES[file]}",
    )
