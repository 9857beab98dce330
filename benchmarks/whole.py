"""The whole of generation, a file in and a waveform out, of ours and of PyTorch's networks.

Both sides decode the file with the same code. Everything behind the frames is each side's own:
PyTorch's samples with diffusers' DPM-Solver++.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn

from benchmarks import torch_networks
from benchmarks.beside import Setting, by_turns, first_calls, speed
from benchmarks.sizes import FPS, Sizes
from benchmarks.stages import Decoder, generate_loa
from mfm_jax.bundle import Bundle, write_sizes
from mfm_jax.cost import flops
from mfm_jax.encoders import encode_windows, read_in_generation, window_spec
from mfm_jax.inference.pipeline import (
    Made,
    Networks,
    Sampling,
    VideoToAudio,
    predict_loa,
    sound_from_loa,
)
from mfm_jax.inference.requests import Request
from mfm_jax.inference.work import Item, Job, Work
from mfm_jax.inference.work import Networks as WorkNetworks
from mfm_jax.media.audio import RATE
from mfm_jax.media.frames import windows
from mfm_jax.media.windows import Window
from mfm_jax.media.write import write_frames
from mfm_jax.models.timechat import normalise
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.runtime.throughput import Throughput
from mfm_jax.typing import Float


def make_clip(path: Path, sizes: Sizes, *, sound: bool = False) -> Path:
    """Write a clip of one window: noise that moves, and noise to hear if `sound`."""
    rng = np.random.default_rng(0)
    seconds, side = sizes.settings.seconds, 8
    coarse = rng.integers(0, 256, (sizes.height // side + 1, sizes.width // side + 1, 3), np.uint8)
    picture = coarse.repeat(side, 0).repeat(side, 1)
    frames = (
        np.roll(picture, 4 * i, axis=1)[: sizes.height, : sizes.width]
        for i in range(round(seconds * FPS))
    )
    wave = 0.1 * rng.standard_normal(round(seconds * RATE)).astype(np.float32)
    write_frames(frames, path, fps=FPS, wave=wave if sound else None)
    return path


@contextmanager
def sizes_bundle(sizes: Sizes) -> Iterator[Bundle]:
    """Yield a bundle with the sizes and no weights."""
    with tempfile.TemporaryDirectory() as folder:
        write_sizes(Path(folder), sizes.configs, sizes.settings)
        yield Bundle.open(Path(folder))


def our_model(setting: Setting) -> VideoToAudio:
    """Return our networks with drawn weights, ready to make sound."""
    layout = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
    with sizes_bundle(setting.sizes) as bundle:
        encoders = read_in_generation(bundle)
        spec = window_spec(bundle, encoders)
    drawn: dict[str, Any] = {
        name: setting.component(name) for name in Networks._fields if name != "encoders"
    }
    drawn["encoders"] = {name: setting.component(name) for name in encoders}
    networks = Networks(**jax.device_put(drawn, layout.replicated))
    return VideoToAudio(networks, setting.sizes.settings, spec, encoders, layout)


def their_model(setting: Setting) -> "TheirModel":
    """Return PyTorch's networks with weights that are drawn on its device."""
    with torch.device(setting.device):
        model = TheirModel(setting.sizes)
    if "compile" in setting.ways:
        model.compiled()
    return setting.theirs(model)


class TheirTimeChat(nn.Module):
    """The visual branch of TimeChat, from the parts that libraries have."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        image = config.image_qformer
        self.config = config
        self.vit = torch_networks.eva_vit(config.vit)
        self.norm = nn.LayerNorm(config.vit.width)
        self.image = torch_networks.qformer(image)
        self.video = torch_networks.qformer(config.video_qformer)
        self.image_queries, self.video_queries, self.positions = (
            nn.Parameter(torch.randn(rows, image.width))
            for rows in (image.queries, config.video_qformer.queries, config.frames)
        )

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the video tokens of a window `[T, 3, H, W]`, with the sentences of its frames."""
        seen = self.norm(self.vit(pixels).last_hidden_state)
        count, queries = len(pixels), self.image_queries
        visible = torch.cat([mask.new_ones(count, len(queries)), mask], dim=1)
        tokens = self.image(
            input_ids=ids, attention_mask=visible, encoder_hidden_states=seen,
            query_embeds=queries.expand(count, *queries.shape),
        ).last_hidden_state + self.positions[:, None]  # fmt: skip
        read = tokens.reshape(count // self.config.window, -1, tokens.shape[-1])
        asked = self.video_queries.expand(len(read), *self.video_queries.shape)
        found = self.video(
            input_ids=None, query_embeds=asked, encoder_hidden_states=read
        ).last_hidden_state
        return found.reshape(1, -1, found.shape[-1])


class TheirModel(nn.Module):
    """All networks of generation in PyTorch, with drawn weights."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        configs = sizes.configs
        self.config = configs["mapper"]
        self.cavp = torch_networks.CAVPVideo(configs["cavp"])
        self.timechat = TheirTimeChat(configs["timechat"])
        self.inputs = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.config.gpt2.width))
                for name, _, width in self.config.encoders
            }
        )
        self.gpt2 = torch_networks.gpt2(self.config.gpt2)
        self.unet = torch_networks.unet(configs["unet"])
        self.vae = Decoder(torch_networks.vae(configs["vae"]))
        self.vocoder = torch_networks.vocoder(configs["vocoder"])
        by, mels = configs["vae"].compression, configs["vocoder"].mels
        self.latents = (configs["unet"].latent_channels, sizes.settings.frames // by, mels // by)
        self.words = torch.zeros(1, configs["text"].tokens, configs["text"].width)

    def compiled(self) -> None:
        """Let `torch.compile` compile the networks, each by itself."""
        for network in (
            self.cavp, self.timechat.vit, self.timechat.image, self.timechat.video, self.gpt2,
            self.unet, self.vae, self.vocoder,
        ):  # fmt: skip
            network.compile()

    def encode(
        self, pixels: torch.Tensor, frames: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens of both encoders for a window, in the width of GPT-2."""
        streams = {"cavp": self.cavp(pixels), "timechat": self.timechat(frames, ids, mask)}
        return torch.cat([self.inputs[name](tokens) for name, tokens in streams.items()], dim=1)

    def sound(self, prefix: torch.Tensor, schedule: Any, sampling: Sampling) -> torch.Tensor:
        """Return the waveforms of the windows whose tokens are given."""
        loa = generate_loa(self.gpt2, prefix, self.config.loa.tokens)
        both = torch.cat([torch.zeros_like(loa), loa])
        words = self.words.to(loa).expand(len(both), -1, -1)
        solver = DPMSolverMultistepScheduler(
            num_train_timesteps=schedule.train_steps, beta_start=schedule.beta_start,
            beta_end=schedule.beta_end, beta_schedule="scaled_linear",
        )  # fmt: skip
        solver.set_timesteps(sampling.steps, device=loa.device)
        x = torch.randn(len(loa), *self.latents, device=loa.device, dtype=loa.dtype)
        for t in solver.timesteps:
            noise = self.unet(
                torch.cat([x, x]), t, encoder_hidden_states=both, encoder_hidden_states_1=words
            ).sample
            without, given = noise.chunk(2)
            guided = without + sampling.guidance * (given - without)
            x = solver.step(guided, t, x).prev_sample.to(loa.dtype)
        return self.vocoder(self.vae(x)[:, 0])


@dataclass(frozen=True)
class Theirs:
    """PyTorch's side: turns windows into waveforms."""

    model: TheirModel
    setting: Setting
    ours: VideoToAudio  # for the settings and the tokens of sentences
    sampling: Sampling

    def __call__(self, seen: Sequence[Window], way: str) -> Float[np.ndarray, "B A"]:
        """Return the waveform of each window, computed in a way of `TORCH`."""
        stance = "default" if way == "compile" else "force_eager"
        with torch.compiler.set_stance(stance):
            prefix = torch.cat([self._encode(window) for window in seen])
            waves = self.model.sound(prefix, self.ours.settings.schedule, self.sampling)
        return waves.float().cpu().numpy()[:, : self.ours.settings.frames * RATE // 100]

    def _encode(self, window: Window) -> torch.Tensor:
        frames, tensor = self.ours.frames([window]), self.setting.tensor
        cavp = np.asarray(frames["cavp"].pixels, np.float32) / 255.0
        pixels = np.asarray(normalise(frames["timechat"].pixels))[0]
        ids, mask = (
            np.asarray(x[0], np.int64) for x in (frames["timechat"].ids, frames["timechat"].mask)
        )
        return self.model.encode(
            tensor(cavp.transpose(0, 4, 1, 2, 3)), tensor(pixels.transpose(0, 3, 1, 2)),
            tensor(ids), tensor(mask),
        )  # fmt: skip


def measure_whole(
    setting: Setting, batches: Sequence[int], *, steps: int, rounds: int, clips: int, until: float
) -> None:
    """Time both sides by turns, each with its networks loaded once, and print what each takes.

    Args:
        batches: clips at once, of each measurement.
        clips: files that get sound in one run after that, if any, in the last of `batches`.
        until: when nothing new is begun, by `time.monotonic`.
    """
    begun = time.perf_counter()
    ours, sampling = our_model(setting), Sampling("dpm++", steps)
    theirs = Theirs(their_model(setting), setting, ours, sampling) if setting.ways else None
    print(f"all networks are drawn in {time.perf_counter() - begun:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        clip = make_clip(Path(name) / "clip.mp4", setting.sizes)
        operations = count_operations(ours, [next(windows(clip, ours.spec))], sampling)

        def measure(batch: int, ways: Sequence[str]) -> None:
            def read() -> list[Window]:
                return [next(windows(clip, ours.spec)) for _ in range(batch)]

            sides: dict[str, Callable[[], Any]] = {"ours": lambda: ours(read(), 0, sampling)}
            if theirs is not None:
                sides |= {way: partial(_their_turn, theirs, read, way) for way in ways}
            spent = by_turns(first_calls(sides, until, _first_told), rounds)
            print(told(spent, setting, batch, operations), flush=True)

        # What PyTorch compiles for minutes comes last, so that a limit of time costs nothing else.
        for batch in batches:
            measure(batch, [way for way in setting.ways if way != "compile"])
        if clips and time.monotonic() < until:
            many(setting.sizes, ours, sampling, clips, batches[-1])
        if "compile" in setting.ways:
            for batch in batches:
                if time.monotonic() < until:
                    measure(batch, setting.ways)


def _their_turn(theirs: Theirs, read: Callable[[], list[Window]], way: str) -> np.ndarray:
    return theirs(read(), way)


def _first_told(name: str, seconds: float, waves: np.ndarray) -> None:
    rows, samples = waves.shape
    print(f"{name}: {rows} x {samples} samples, first call {seconds:.1f} s", flush=True)


def told(spent: Mapping[str, float], setting: Setting, batch: int, operations: int) -> str:
    """Say what the whole took on each side."""
    words = [f"{name} {seconds:.2f} s" for name, seconds in spent.items()]
    words += [f"ratio to {way} {spent['ours'] / spent[way]:.2f}" for way in spent if way != "ours"]
    rate, share = speed(batch * operations, spent["ours"])
    seconds = setting.sizes.settings.seconds
    return (
        f"the whole of {batch} x {seconds:g} s, {batch * operations / 1e12:.4g} TFLOP: "
        f"{', '.join(words)}; ours {rate} GFLOP/s{share and f', {share} of the peak'}"
    )


def count_operations(model: VideoToAudio, seen: Sequence[Window], sampling: Sampling) -> int:
    """Return the floating-point operations that these windows take."""
    n, inputs = model.networks, model.inputs(seen, [0] * len(seen))

    def run(networks: Networks, inputs: Any) -> jax.Array:
        streams = encode_windows(model.encoders, networks.encoders, inputs.frames)
        return sound_from_loa(
            networks.sound_networks, predict_loa(networks.mapper, streams), inputs.keys,
            inputs.text, inputs.negative, None, streams,
            settings=model.settings, sampling=sampling,
        )  # fmt: skip

    with jax.set_mesh(model.layout.mesh):
        return flops.count_flops(run, n, inputs)


def many(sizes: Sizes, model: VideoToAudio, sampling: Sampling, count: int, batch: int) -> None:
    """Give sound to many files in one run, as `mfm generate` does, and print its rates."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = make_clip(folder / "0.mp4", sizes)
        for i in range(1, count):
            shutil.copy(clip, folder / f"{i}.mp4")
        jobs = [Job(Request(folder / f"{i}.mp4"), folder / f"out{i}.mp4") for i in range(count)]
        throughput = Throughput(count)
        work = Work(jobs, model.spec, throughput=throughput)

        def start(items: Sequence[Item]) -> Made:
            return model.start([window for _, window in items], [0] * len(items), sampling)

        begun = time.perf_counter()
        work.run(lambda: WorkNetworks(start), batch)
        spent = time.perf_counter() - begun
    failed = sum(bool(job.failed) for job in jobs)
    print(
        f"{count} files to mp4 in one run, {batch} at once: {spent:.1f} s, {failed} failed; "
        f"after the first batch: {throughput}",
        flush=True,
    )
