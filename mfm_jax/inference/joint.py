"""Windows of a video denoised jointly: they agree where they overlap.

Every step of the sampler is done for all windows of a video before the next step, a batch of them
at a time, and neighbours exchange their predictions in between. So windows fill batches as they do
when each is sampled alone, of one long video or of several, and the device holds the activations of
one batch, however long a video is. What waits between steps are latents, which take less memory
than the sound that they become.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.diffusion.joint import Ends, agreed, continued
from mfm_jax.diffusion.samplers import Sampler, State, Step, fresh_noise
from mfm_jax.errors import UsageError
from mfm_jax.inference.candidates import Choice
from mfm_jax.inference.pipeline import (
    Condition,
    Made,
    Sampling,
    Text,
    VideoToAudio,
    guided,
    sound_from_latents,
)
from mfm_jax.inference.stream import IN_FLIGHT, Device, in_full
from mfm_jax.inference.work import Item, Job, Result, the_only_one
from mfm_jax.media.windows import Window
from mfm_jax.models.adapters import AdaptedUNet
from mfm_jax.models.unet import UNet
from mfm_jax.runtime.seeds import SEEDS
from mfm_jax.runtime.sharding import constrain
from mfm_jax.runtime.throughput import Throughput
from mfm_jax.typing import Array, Float, Shaped

FULL = 8
"""Batches from which on windows are computed though the last batch is not full."""


class Batch(NamedTuple):
    """Windows in the order of their videos, and what their sound is made of."""

    read: Condition
    text: Text | None
    negative: Text | None
    keys: Shaped[Array, " B"]
    keys_before: Shaped[Array, " B"]  # of the window before, for the noise that is shared
    ends: Ends
    unwanted: Float[Array | np.ndarray, "B L E"] | None = None


def latent_shape(model: VideoToAudio) -> tuple[int, int, int]:
    """Return the shape of the latents of a window."""
    n = model.networks
    return n.vae.latent_shape(model.settings.frames, n.vocoder.config.mels)


def latent_overlap(model: VideoToAudio) -> int:
    """Return how many latents neighbouring windows share in time.

    Raises:
        UsageError: they are not a whole number, or fewer than two.
    """
    seconds = model.settings.seconds / latent_shape(model)[0]
    shared = model.spec.overlap / seconds
    if abs(shared - round(shared)) > 1e-6 or round(shared) < 2:
        raise UsageError(
            f"windows that overlap by {model.spec.overlap:g} s cannot be denoised jointly: set the "
            f"bundle's overlap to a multiple of {seconds:g} s, at least {2 * seconds:g} s"
        )
    return round(shared)


@partial(jax.jit, static_argnames=("shape", "overlap"))
def _begin(batch: Batch, *, shape: tuple[int, ...], overlap: int) -> State:
    """Draw the noise of windows; each continues that of the window before."""
    own, before = (
        jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], shape))(keys)
        for keys in (batch.keys, batch.keys_before)
    )
    noise = continued(own, before, batch.ends.first, overlap=overlap)
    return State.begin(constrain(noise, "batch"))


@partial(jax.jit, static_argnames=("sampling", "guidance"))
def _output(
    unet: UNet | AdaptedUNet,
    x: Float[Array, "B H W C"],
    batch: Batch,
    t: Array,
    seconds: Float[Array, " L"],
    *,
    sampling: Sampling,
    guidance: bool,
) -> Float[Array, "B H W C"]:
    """Return what the UNet predicts at one step."""
    condition = jax.tree.map(jnp.asarray, batch.read), batch.text
    both = guided(unet, seconds, condition, batch.unwanted, batch.negative, sampling)
    output = both[0 if guidance else 1](x, jnp.full(x.shape[:1], t, jnp.int32))
    return constrain(output.astype(x.dtype), "batch")


@partial(jax.jit, static_argnames=("sampler", "overlap"))
def _step(
    state: State,
    outputs: tuple[Array, Array, Array],
    batch: Batch,
    step: Step,
    *,
    sampler: Sampler,
    overlap: int,
) -> State:
    """Do a step with predictions that agree.

    Args:
        outputs: predictions for the batch before, for this one, and for the one behind it.
    """
    before, own, after = outputs
    output = agreed(own, before[-1:], after[:1], batch.ends, overlap=overlap)
    z = None
    if sampler.eta:
        z_own, z_before = (
            fresh_noise(
                jax.vmap(lambda key: jax.random.split(key)[1])(keys), step.number, own.shape
            )
            for keys in (batch.keys, batch.keys_before)
        )
        z = continued(z_own, z_before, batch.ends.first, overlap=overlap)
    return jax.tree.map(lambda x: constrain(x, "batch"), sampler.step(state, output, step, z))


def joint_latents(
    model: VideoToAudio, batches: Sequence[Batch], sampling: Sampling
) -> list[Float[Array, "B H W C"]]:
    """Start to sample the latents of whole videos, whose windows lie in one or more batches."""
    n, settings = model.networks, model.settings
    shape, overlap = latent_shape(model), latent_overlap(model)
    seconds = jnp.asarray(n.mapper.config.loa.times())
    sampler = Sampler(
        settings.schedule, sampling.sampler, sampling.steps, sampling.spacing, sampling.eta
    )
    rows, within = jax.tree.map(np.asarray, sampler.rows()), sampler.within(sampling.interval)
    states = [_begin(batch, shape=shape, overlap=overlap) for batch in batches]
    for number, guidance in enumerate(within):
        step = jax.tree.map(lambda each, at=number: each[at], rows)
        outputs = few_at_a_time(
            _output(n.unet, state.x, batch, step.t, seconds, sampling=sampling, guidance=guidance)
            for state, batch in zip(states, batches, strict=True)
        )
        jax.block_until_ready(states)
        beside = zip([outputs[0], *outputs], outputs, [*outputs[1:], outputs[-1]], strict=False)
        states = [
            _step(state, three, batch, step, sampler=sampler, overlap=overlap)
            for state, three, batch in zip(states, beside, batches, strict=True)
        ]
    return [state.x for state in states]


def few_at_a_time(started: Iterable[Array]) -> list[Array]:
    """Return arrays that are being computed; at most `IN_FLIGHT`, because each takes memory."""
    found: list[Array] = []
    for each in started:
        found.append(each)
        jax.block_until_ready(found[-IN_FLIGHT:-1])
    return found


class Row(NamedTuple):
    """A window whose LOA is known."""

    job: Job
    window: Window  # without its frames
    read: Condition  # of this window, without B


class Started(NamedTuple):
    """Sounds that are being computed, batch by batch, and the LOA of the windows in them."""

    waves: list[Float[Array, "B N A"]]
    loa: Float[np.ndarray, "windows L E"]

    def fetched(self) -> Made:
        """Wait for the sounds."""
        return Made(np.concatenate(jax.device_get(self.waves))[: len(self.loa)], self.loa)


def start_joint_sound(
    model: VideoToAudio,
    rows: Sequence[Row],
    batch: int,
    sampling: Sampling,
    prompts: Sequence[Text | None] = (),
    negatives: Sequence[Text | None] = (),
    *,
    candidates: int = 1,
    unwanted: Float[np.ndarray, "L E"] | None = None,
) -> Started:
    """Start to make the sound of all windows of one or more videos, `batch` at a time.

    Args:
        rows: the windows in order, video after video.
        prompts: one row for each window, as in `VideoToAudio.start`; so are `negatives`.
        candidates: as in `VideoToAudio.start`.
        unwanted: LOA that guidance moves away from.
    """
    n = model.networks.sound_networks
    texts = list(prompts) or [None] * len(rows), list(negatives) or [None] * len(rows)
    every = list(zip(rows, *texts, strict=True))
    groups = [in_full(every[at : at + batch], batch) for at in range(0, len(every), batch)]
    waves: list[list[Array]] = [[] for _ in groups]
    with jax.set_mesh(model.layout.mesh):
        for number in range(candidates):
            batches = [batch_of(model, group, number, unwanted) for group in groups]
            latents = joint_latents(model, batches, sampling)
            made = few_at_a_time(
                sound_from_latents(n, each, settings=model.settings) for each in latents
            )
            for its, wave in zip(waves, made, strict=True):
                its.append(wave)
        stacked = [jnp.stack(its, axis=1) for its in waves]
    return Started(stacked, np.stack([np.asarray(row.read.loa) for row in rows]))


def batch_of(
    model: VideoToAudio,
    group: Sequence[tuple[Row, Text | None, Text | None]],
    candidate: int,
    unwanted: Float[np.ndarray, "L E"] | None,
) -> Batch:
    """Return windows with their texts as one batch on the devices, for one candidate."""
    rows, prompts, negatives = zip(*group, strict=True)
    numbers = [row.window.index for row in rows]
    seeds = [(row.job.request.seed + candidate) % SEEDS for row in rows]
    batch = Batch(
        jax.tree.map(lambda *each: np.stack(each), *(row.read for row in rows)),
        *model.texts(len(rows), prompts, negatives),
        model.keys(numbers, seeds),
        model.keys([max(0, number - 1) for number in numbers], seeds),
        Ends(
            np.array([number == 0 for number in numbers]),
            np.array([row.window.index == row.job.windows - 1 for row in rows]),
        ),
        None if unwanted is None else np.stack([unwanted] * len(rows)),
    )
    return model.put(batch, len(rows))


@dataclass(frozen=True)
class JointNetworks:
    """A `Maker` that denoises the windows of a video jointly, once it knows the LOA of all."""

    predict: Callable[[Sequence[Item]], Any]  # starts to predict the LOA of a batch
    # Starts to make the sounds of the windows of whole videos, so many at a time.
    start: Callable[[list[Row], int], Started]
    choose: Callable[[Sequence[Made]], Choice] = the_only_one

    def results(
        self, groups: Iterable[list[Item]], batch: int, throughput: Throughput
    ) -> Iterator[Result]:
        """Yield what is made of the windows of whole videos."""
        failed: list[Result] = []
        videos = self._videos(groups, batch, throughput, failed)
        device = Device[Row, Made](
            lambda rows: self.start(rows, batch), Started.fetched, throughput
        )
        for rows, result in device.results_by_source(_filled(videos, batch), lambda row: row.job):
            yield [(row.job, row.window) for row in rows], result
            yield from failed
            failed.clear()
        yield from failed

    def _videos(
        self,
        groups: Iterable[list[Item]],
        batch: int,
        throughput: Throughput,
        failed: list[Result],
    ) -> Iterator[list[Row]]:
        """Predict LOA, and yield the windows of each video once all of them are there."""

        known: dict[Job, list[Row]] = {}
        device = Device[Item, Any](
            lambda group: self.predict(in_full(group, batch)), jax.device_get, throughput
        )
        for group, result in device.results_by_source(groups, lambda item: item[0]):
            if isinstance(result, Exception):
                failed.append((group, result))
                known.pop(group[0][0], None)
                continue
            for number, (job, window) in enumerate(group):
                read = jax.tree.map(lambda each, at=number: each[at], result)
                known.setdefault(job, []).append(Row(job, window.without_frames(), read))
                if len(known[job]) == job.windows:
                    yield known.pop(job)


def _filled(videos: Iterable[list[Row]], batch: int) -> Iterator[list[Row]]:
    """Yield the windows of whole videos together that fill their batches, or nearly."""
    kinds: dict[bool, list[Row]] = {}
    for rows in videos:
        waiting = kinds.setdefault(rows[0].job.request.reads_text, [])
        waiting += rows
        if len(waiting) % batch == 0 or len(waiting) >= FULL * batch:
            yield kinds.pop(rows[0].job.request.reads_text)
    yield from kinds.values()
