"""The work of the process of `test_generate_mesh.py`: untrained networks on eight devices."""

import contextlib
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mfm_jax.cli import main
from mfm_jax.encoders.cavp import encode_cavp
from mfm_jax.encoders.timechat import encode_timechat
from mfm_jax.foley.world import World, write_clip
from mfm_jax.inference.generate import layout_and_batch
from mfm_jax.inference.joint import Row, start_joint_sound
from mfm_jax.inference.pipeline import (
    Condition,
    Sampling,
    VideoToAudio,
    predict_loa,
    sound_from_loa,
)
from mfm_jax.inference.requests import Request
from mfm_jax.inference.work import Job
from mfm_jax.media.windows import Window
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from tests.noise import window

WINDOWS = 8
SAMPLING = Sampling(steps=3)
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


def held(model: VideoToAudio) -> float:
    """The largest share of the weights on one device."""
    each = dict.fromkeys(model.layout.mesh.devices.flat, 0)
    weights = jax.tree.leaves(model.networks)
    for weight in weights:
        for piece in weight.addressable_shards:
            each[piece.device] += piece.data.nbytes
    return max(each.values()) / sum(weight.nbytes for weight in weights)


def abstract(tree: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Return shapes in place of arrays, with the same shardings."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree
    )


def memory(model: VideoToAudio, windows: list[Window]) -> dict[str, list[int]]:
    """Of each program, compiled from shapes alone."""
    sharding = model.layout.batch(len(windows))
    n, inputs = (
        abstract(model.networks),
        abstract(model.inputs(windows, [0] * len(windows)), sharding),
    )
    tensor = n.mapper.config.timechat
    with jax.set_mesh(model.layout.mesh):
        lowered = {
            "cavp": encode_cavp.lower(n.encoders["cavp"], inputs.frames["cavp"]),
            "timechat": encode_timechat.lower(
                n.encoders["timechat"], inputs.frames["timechat"], tensor=tensor
            ),
        }
        streams = {name: abstract(program.out_info, sharding) for name, program in lowered.items()}
        lowered["loa"] = predict_loa.lower(n.mapper, streams)
        loa = abstract(lowered["loa"].out_info, sharding)
        lowered["sound"] = sound_from_loa.lower(
            n.sound_networks,
            loa,
            inputs.keys,
            None,
            None,
            settings=model.settings,
            sampling=SAMPLING,
        )
        sizes = {name: its.compile().memory_analysis() for name, its in lowered.items()}
    return {n: [m.argument_size_in_bytes, m.temp_size_in_bytes] for n, m in sizes.items()}


def joint_waves(model: VideoToAudio) -> np.ndarray:
    """The windows of one video in two batches, from drawn LOA."""
    count, grid = WINDOWS + 2, model.networks.mapper.config
    loa = np.random.default_rng(0).normal(size=(count, grid.loa.tokens, grid.loa_width))
    job = Job(Request(Path("a.mp4")), Path("a.wav"), windows=count)
    read = [Condition(row) for row in loa.astype(np.float32)]
    rows = [Row(job, window(model.spec, i), read[i]) for i in range(count)]
    return start_joint_sound(model, rows, WINDOWS, SAMPLING).fetched().waves


def on_mesh(
    bundle: Path, sizes: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The waves of one batch and those of a long video, and what is printed of them."""
    layout = Layout(make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))]))
    model = VideoToAudio.open(bundle, layout=layout)
    windows = [window(model.spec, i) for i in range(WINDOWS)]
    waves = model(windows, 0, SAMPLING)
    loudest = float(np.abs(waves).max())
    found = {"loudest": loudest, "held": held(model), "memory": memory(model, windows)}
    return waves, joint_waves(model), found


@contextlib.contextmanager
def devices(count: int):
    """As if there were no more than these."""
    local = jax.local_devices
    jax.local_devices = lambda: local()[:count]
    yield
    jax.local_devices = local


def said(*arguments: str | Path) -> str:
    """The exit code of `mfm generate` and its lines."""
    with contextlib.redirect_stderr(io.StringIO()) as lines:
        code = main(["generate", *map(str, arguments)])
    return f"{code}: {lines.getvalue()}"


def default_batch(count: int) -> int:
    """What is computed at once on so many devices."""
    with devices(count):
        return layout_and_batch()[1]


def run(folder: Path) -> dict[str, Any]:
    """Compute on several meshes with `bundle` in the folder, and leave `one.wav` and `eight.wav`.

    `meshes`: by the sizes of the mesh the largest difference of a wave from those of one device,
    `joint` that of a video whose windows are denoised jointly in two batches, the loudest sample,
    the largest share of the weights that a device holds, and the bytes that each program needs on a
    device for its arguments and while it runs. `batches`: what `mfm generate` computes at once, by
    the number of devices. `said`: its lines for some options on eight devices. The two sounds are
    made of one clip by so many devices.
    """
    bundle = folder / "bundle"
    alone, long_alone, found = on_mesh(bundle, MESHES[0])
    meshes = {"1x1x1": found}
    for sizes in MESHES[1:]:
        waves, long, found = on_mesh(bundle, sizes)
        meshes["x".join(map(str, sizes))] = found | {
            "difference": float(abs(waves - alone).max()),
            "joint": float(abs(long - long_alone).max()),
        }

    write_clip(World(), 0, folder)
    clip = folder / "0.mp4"
    # As above, so that nothing is compiled again.
    same = ["--batch", WINDOWS, "--steps", SAMPLING.steps, "--guidance", SAMPLING.guidance]
    same += ["--sampler", SAMPLING.sampler, "--bundle", bundle]
    cut = ["--fsdp", 2, "--tensor", 2]
    lines = {
        "eight": said(clip, "-o", folder / "eight.wav", *same, *cut),
        "batch": said(clip, "-o", folder / "a.wav", "--batch", 4),
        "fsdp": said(clip, "-o", folder / "a.wav", "--fsdp", 3),
    }
    with devices(1):
        lines["one"] = said(clip, "-o", folder / "one.wav", *same)
    batches = {count: default_batch(count) for count in (1, 2, 3, 8)}
    return {"meshes": meshes, "batches": batches, "said": lines}
