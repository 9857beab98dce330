"""Every network that needs no labels trains on one small folder of clips, by changing one field."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.bundle import Bundle
from mfm_jax.data.records import read_about
from mfm_jax.media.write import write_frames
from mfm_jax.models.synchformer import SynchformerConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import named_weights
from tests.bundles import untrained_bundle
from tests.train.running import run_config

CLIPS = 6
TINY = SynchformerConfig.tiny()
CONFIGS = {
    "tiny_cavp": "cavp",
    "tiny_synchformer": "synchformer",
    "tiny_synchformer_sync": "synchformer",
    "tiny_audiomae": "audiomae",
    "tiny_vae": "vae",
    "tiny_vocoder": "vocoder",
    "tiny_unet": "unet",
    "tiny": "mapper",
    "tiny_stage2": "mapper",
}
"""In an order in which each finds what it learns from, and the component that it leaves."""
THIN = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 16}
SYNCHFORMER = SynchformerConfig(
    *(replace(part, **THIN) for part in (TINY.video, TINY.audio, TINY.sync))
)
UNET = replace(UNetConfig.tiny(), channels=(8, 12), attentions=((), (0,)), groups=4)
SMALLER = {
    "tiny_cavp": ["recipe.network.blocks=[1,1,1,1]"],
    "tiny_synchformer": [f"recipe.network={json.dumps(to_json(SYNCHFORMER))}"],
    "tiny_synchformer_sync": [f"recipe.network={json.dumps(to_json(SYNCHFORMER))}"],
    "tiny_audiomae": [
        f"recipe.network.{name}=1" for name in ("averaged", "depth", "decoder_depth")
    ],
    "tiny_vae": ["recipe.network.channels=[8,8,16]", "recipe.network.groups=4"],
    "tiny_vocoder": ["recipe.segment=16"],
    "tiny_unet": [f"recipe.network={json.dumps(to_json(UNET))}"],
    "tiny": ["recipe.network.gpt2.depth=1"],
}
"""Fields that make a network quick to compile."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Squares that jump, with a click at each jump: no clip of the Foley world."""
    folder = tmp_path_factory.mktemp("own") / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        jumps = np.sort(rng.choice(np.arange(8, 60), 3, replace=False))
        frames = np.zeros((64, 48, 64, 3), np.uint8) + 40
        wave = 1e-3 * rng.standard_normal(64 * 640).astype(np.float32)
        for t, frame in enumerate(frames):
            x = 4 + 12 * int(np.searchsorted(jumps, t, side="right"))
            frame[16:32, x : x + 12] = 60 * i % 200, 200, 120
        for t in jumps:
            wave[t * 640 : t * 640 + 800] += 0.5 * np.exp(-np.arange(800) / 150) * rng.uniform()
        write_frames(frames, folder / f"own{i}.mp4", fps=25, wave=wave)
    return folder


def steps_of(workdir: Path) -> list[dict]:
    """Return the lines of a run's steps."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def test_every_network_trains_on_the_same_folder(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the configs name folders below runs/
    base = untrained_bundle(tmp_path / "base")
    for name, component in CONFIGS.items():
        workdir = Path("runs/tiny") / name.replace("tiny_", "").replace("tiny", "mapper")
        fields = ["steps=2", "batch=2", "log_every=1", *SMALLER.get(name, [])]
        if name != "tiny_stage2":  # it goes on with the features of stage 1
            fields += [f"recipe.source={clips}", "recipe.source.cache=decoded"]
        if name == "tiny":
            fields += [f"recipe.bundle={base.path}"]
        assert run_config(name, workdir, fields) == 0
        steps = steps_of(workdir)
        assert [line["step"] for line in steps] == [1, 2]
        assert np.isfinite([line["loss"] for line in steps]).all()
        bundle = Bundle.open(workdir if component == "mapper" else Path("runs/tiny/bundle"))
        source = bundle.entries[component].source
        # Nobody said what may be done with these clips.
        assert "LicenseRef-unknown" in source.licence
    for folder, description in (
        ("decoded", "media.json"),
        ("runs/tiny/mapper/features", "features.json"),
    ):
        counts = [
            read_about(Path(folder) / name / description)["clips"] for name in ("train", "heldout")
        ]
        assert sum(counts) == CLIPS
        assert min(counts) >= 1
    unet = read_about(Path("runs/tiny/unet/features/train/features.json"))
    assert list(unet["encoders"]) == ["audiomae", "vae"]  # though the bundle has cavp by then
    bundle = Bundle.open(Path("runs/tiny/bundle"))
    assert bundle.made_together("cavp", "cavp_audio")
    assert {name for name, _ in bundle.entries["unet"].source.trained_with} == {"audiomae", "vae"}
    told = capsys.readouterr().out
    # The mapper standardises LOA, and its workdir has every network of the bundle it started from.
    assert "heldout_loa_error_shuffled" in told
    mapper = Bundle.open(Path("runs/tiny/mapper"))
    assert mapper.load("mapper").loa_std[...].min() < 1
    assert set(mapper.entries) == set(base.entries)
    assert "--config tiny" in mapper.entries["mapper"].source.made_by
    # Stage 2 changes the mapper, but for the moments of LOA, and nothing else.
    assert "heldout_diffusion_true" in told
    for line in steps_of(Path("runs/tiny/stage2")):
        assert line["loss"] == pytest.approx(line["diffusion"] + line["mse"], rel=1e-5)
    stage2 = Bundle.open(Path("runs/tiny/stage2"))
    assert stage2.entries.keys() == mapper.entries.keys()
    changed = {name for name, entry in stage2.entries.items() if entry != mapper.entries[name]}
    assert changed == {"mapper"}
    assert stage2.config("mapper") == mapper.config("mapper")
    first, second = (named_weights(b.load("mapper")) for b in (mapper, stage2))
    assert all(np.any(first[n] != second[n]) for n in first if n.endswith("kernel"))
    assert all(np.array_equal(first[n], second[n]) for n in ("loa_mean", "loa_std"))
    assert "--config tiny_stage2" in stage2.entries["mapper"].source.made_by
