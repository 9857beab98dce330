"""The adapter that tells a frozen UNet when: what is trained, what is kept, and what uses it."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, BundleError, write_bundle
from mfm_jax.data.features import FeatureSource
from mfm_jax.data.sources import ClipFiles
from mfm_jax.encoders import read_in_generation
from mfm_jax.errors import SettingError
from mfm_jax.inference.joint import Row, batch_of, joint_latents
from mfm_jax.inference.pipeline import Condition, Sampling, VideoToAudio, sound_from_latents
from mfm_jax.inference.programs import generation
from mfm_jax.inference.requests import Request
from mfm_jax.inference.work import Job
from mfm_jax.mapper import Stream
from mfm_jax.media.windows import blank_window
from mfm_jax.models.adapters import AdaptedUNet, without_video
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from mfm_jax.train.recipes.sync import SyncRecipe
from tests.bundles import CONFIGS, filled, untrained_bundle, untrained_component
from tests.feature_folder import write_features
from tests.train.running import run_config

SAMPLING = Sampling(steps=2, guidance=2.0)
FAST = ["batch=4", "optimizer.warmup_steps=0", "log_every=1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Bundle:
    return untrained_bundle(tmp_path_factory.mktemp("base") / "b")


@pytest.fixture(scope="module")
def features(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for part in ("train", "heldout"):
        write_features(base, folder / part, 4)
    return folder


@pytest.fixture(scope="module")
def trained(base, features, tmp_path_factory) -> Bundle:
    """The bundle that a run of the shipped config leaves after three steps."""
    folder = tmp_path_factory.mktemp("sync") / "run"
    fields = [f"recipe.bundle={base.path}", f"recipe.source.path={features}", "steps=3"]
    assert run_config("tiny_sync", folder, [*fields, *FAST]) == 0
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def ready(trained, tmp_path_factory) -> VideoToAudio:
    """The networks of sound, as `mfm generate` opens them, with an adapter that says something."""
    adapter = untrained_component("adapter", trained.config("adapter"), 4)
    folder = tmp_path_factory.mktemp("ready") / "b"
    bundle = write_bundle(folder, {"adapter": adapter}, base=trained.path)
    return VideoToAudio.open(bundle.path, only=["mapper", "unet", "vae", "vocoder"])


@pytest.fixture(scope="module")
def streams(features):
    source = FeatureSource(features / "train")
    clips = [source[i] for i in range(2)]

    def stacked(name):
        return jnp.asarray(np.stack([clip[name] for clip in clips]), jnp.float32)

    return {n: Stream(stacked(n), stacked(f"{n}_seconds")) for n in ("cavp", "timechat")}


@pytest.fixture(scope="module")
def window(ready):
    return blank_window(ready.spec)


def sound(model: VideoToAudio, read: Condition, window) -> np.ndarray:
    return np.asarray(model.sound(read, [window] * 2, [1, 1], SAMPLING).waves[:, 0])


def test_the_adapter_is_trained_and_the_rest_keeps_its_bits(base, trained):
    assert set(trained.entries) == {*base.entries, "adapter"}
    for name, entry in base.entries.items():
        assert trained.entries[name].checksum == entry.checksum
    weights = named_weights(trained.load("adapter"))
    levels = range(len(trained.config("unet").channels))
    last = [weights[f"levels.{level}.kernel"] for level in levels]
    assert all(np.any(w) for w in last), "they begin as zeros"
    source = trained.entries["adapter"].source
    read = ["audiomae", "cavp", "timechat", "unet", "vae"]
    assert [name for name, _ in source.trained_with] == read


def test_an_adapter_can_start_with_latents_before_the_unet(base, features, tmp_path):
    start, fields = tmp_path / "start", [f"recipe.source.path={features}", *FAST]
    first = [f"recipe.bundle={base.path}", "steps=40", *fields]
    assert run_config("tiny_sync_start", start, first) == 0
    lines = map(json.loads, (start / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    bundle = Bundle.open(start)
    before = named_weights(bundle.load("adapter"))
    assert not any(np.any(w) for n, w in before.items() if n.startswith("levels."))
    go_on = [f"recipe.bundle={start}", "recipe.init_from=adapter", "steps=1", *fields]
    assert run_config("tiny_sync", tmp_path / "run", go_on) == 0
    done = Bundle.open(tmp_path / "run")
    after = named_weights(done.load("adapter"))
    # A step of Adam moves a weight by at most the learning rate.
    assert all(np.abs(after[n] - w).max() < 5e-3 for n, w in before.items())
    assert any(np.any(w) for n, w in after.items() if n.startswith("levels."))
    used = dict(done.entries["adapter"].source.trained_with)
    assert used["adapter"] == bundle.entries["adapter"].checksum
    recipe = SyncRecipe(
        bundle=str(start), source=ClipFiles(str(features)), kind="features", width=48,
        init_from="adapter",
    )  # fmt: skip
    with pytest.raises(SettingError, match=r"init_from: the adapter of .* width=48.* width=20"):
        replace(recipe, width=20).check(tmp_path)
    with pytest.raises(SettingError, match=r"init_from: bundle .* has no adapter"):
        replace(recipe, bundle=str(base.path)).check(tmp_path)


def test_video_alone_has_no_loa_and_keeps_its_video(base, features):
    recipe = SyncRecipe(
        bundle=str(base.path), kind="features", width=8, video_only_prob=1.0, uncond_prob=0.0
    )
    module = filled(abstract(recipe.build), 3)
    source = FeatureSource(features / "train")
    elements = [recipe.read(source[i]) for i in range(2)]
    batch = {name: jnp.asarray(np.stack([e[name] for e in elements])) for name in elements[0]}

    @jax.jit
    def loss(**changes):
        return recipe.loss(module, batch | changes, jax.random.key(0))[0]

    plain = loss()
    assert loss(audiomae=batch["audiomae"] + 1) == plain
    assert abs(loss(cavp=jnp.roll(batch["cavp"], 1, axis=2)) - plain) > 1e-5


def test_generation_reads_the_video_by_the_adapter(ready, streams, window):
    read = ready.predict(streams)
    assert set(read.streams) == {"cavp", "timechat"}
    made = sound(ready, read, window)
    unseen = sound(ready, read._replace(streams=without_video(streams)), window)
    assert np.abs(unseen - made).max() > 1e-4
    networks = ready.networks
    nothing = {
        name: jnp.zeros_like(weight) if name.startswith("levels.") else weight
        for name, weight in named_weights(networks.unet.adapter).items()
    }
    silent = AdaptedUNet(networks.unet.unet, with_weights(networks.unet.adapter, nothing))
    as_before = replace(ready, networks=networks._replace(unet=silent))
    without = replace(ready, networks=networks._replace(unet=networks.unet.unet))
    alone = without.predict(streams)
    assert alone.streams is None
    np.testing.assert_array_equal(sound(as_before, read, window), sound(without, alone, window))


def test_windows_that_are_denoised_jointly_read_it_as_well(ready, streams, window):
    """A video of one window has the sound that it has alone."""
    job = Job(Request(Path("a.mp4"), seed=1), Path("a.wav"), windows=1)
    read = jax.device_get(ready.predict(streams))
    rows = [Row(job, window, jax.tree.map(lambda x, at=i: x[at], read)) for i in range(2)]
    with jax.set_mesh(ready.layout.mesh):
        batch = batch_of(ready, [(row, None, None) for row in rows], 0, None)
        (latents,) = joint_latents(ready, [batch], SAMPLING)
        networks = ready.networks.sound_networks
        waves = sound_from_latents(networks, latents, settings=ready.settings)
    np.testing.assert_allclose(waves, sound(ready, ready.predict(streams), window), atol=1e-4)


def test_the_programs_known_beforehand_have_the_video(trained):
    layout = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
    programs = {p.name: p for p in generation(trained, layout, batch=2, sampling=SAMPLING)}
    *_, unwanted, video = programs["AudioLDM2"].arguments
    assert unwanted is None
    shapes = {name: its.tokens.shape for name, its in video.items()}
    assert shapes == {"cavp": (2, 32, 64), "timechat": (2, 16, 96)}


def test_stage_2_reads_through_the_adapter_and_keeps_it(trained, features, tmp_path):
    fields = [f"recipe.bundle={trained.path}", f"recipe.source.path={features}", "steps=1"]
    assert run_config("tiny_stage2", tmp_path / "run", [*fields, *FAST]) == 0
    after = Bundle.open(tmp_path / "run")
    for name in ("unet", "adapter"):
        assert after.entries[name].checksum == trained.entries[name].checksum
    assert after.entries["mapper"].checksum != trained.entries["mapper"].checksum
    assert "adapter" in dict(after.entries["mapper"].source.trained_with)


def test_an_adapter_may_read_what_the_mapper_does_not(base, tmp_path):
    recipe = SyncRecipe(bundle=str(base.path), encoders=(("motion", 64, 64),))
    assert recipe.network.streams == ("motion",)
    component = untrained_component("adapter", recipe.network, 1)
    bundle = write_bundle(tmp_path / "b", {"adapter": component}, base=base.path)
    assert set(read_in_generation(bundle)) == {"cavp", "timechat", "motion"}


def test_an_adapter_learns_from_features_in_two_folders(base, features, tmp_path):
    for part in ("train", "heldout"):
        shapes = {"moving": (64, 96), "moving_seconds": (64,)}
        write_features(base, tmp_path / "further" / part, 4, shapes)
    fields = [
        f"recipe.bundle={base.path}", f"recipe.source.path={features}",
        f'recipe.source.beside=["{tmp_path / "further"}"]', "recipe.kind=features",
        'recipe.encoders=[["cavp", 32, 64], ["moving", 64, 96]]',
    ]  # fmt: skip
    assert run_config("tiny_sync", tmp_path / "run", [*fields, "steps=2", *FAST]) == 0
    after = Bundle.open(tmp_path / "run")
    assert after.config("adapter").streams == ("cavp", "moving")
    used = dict(after.entries["adapter"].source.trained_with)
    assert used.keys() == {"audiomae", "vae", "unet", "cavp", "timechat"}
    model = VideoToAudio.open(after.path, only=["encoders", "mapper"])
    assert set(model.encoders) == {"cavp", "timechat", "moving"}
    assert model.networks.encoders["moving"].vit is model.networks.encoders["timechat"].vit
    another = untrained_component("timechat", CONFIGS["timechat"], 9)
    with pytest.warns(UserWarning, match=r"adapter is left out .* with another timechat: train"):
        write_bundle(tmp_path / "b", {"timechat": another}, base=after.path)


def test_an_adapter_stays_with_the_encoders_that_it_was_trained_with(base, trained, tmp_path):
    cavp = untrained_component("cavp", CONFIGS["cavp"], 9)
    with pytest.warns(UserWarning, match=r"adapter is left out .* with another cavp: train one"):
        other = write_bundle(tmp_path / "b", {"cavp": cavp}, base=trained.path)
    assert set(other.entries) == set(base.entries)
    entry = trained.entries["adapter"]
    old = {"adapter": (entry.config, trained.load("adapter"), entry.source)}
    with pytest.raises(BundleError, match=r"does not fit bundle .* with another cavp: train one"):
        write_bundle(other.path, old)
    write_bundle(tmp_path / "c", old | {"cavp": cavp}, base=base.path)  # these go together
    assert set(Bundle.open(other.path).entries) == set(base.entries)


def test_networks_that_do_not_go_together_are_refused(base, trained, tmp_path):
    wider = replace(CONFIGS["unet"], channels=(16, 32))
    unet = untrained_component("unet", wider, 1)
    with pytest.warns(UserWarning, match=r"left out of .* for a UNet of other sizes: train one"):
        write_bundle(tmp_path / "u", {"unet": unet}, base=trained.path)
    mapper = untrained_component("mapper", replace(CONFIGS["mapper"], timechat="frame"), 1)
    with pytest.warns(UserWarning, match=r"left out of .* tokens of timechat than the mapper"):
        write_bundle(tmp_path / "m", {"mapper": mapper}, base=trained.path)
    told = json.loads((trained.path / "bundle.json").read_text())
    told["components"]["unet"]["config"]["channels"] = [16, 32]
    for entry in trained.path.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "bundle.json").unlink()
    (tmp_path / "bundle.json").write_text(json.dumps(told))
    with pytest.raises(
        BundleError, match=r"adapter in bundle .* cannot be used, because it is for"
    ):
        VideoToAudio.open(tmp_path, verify=False)
    with pytest.raises(SettingError, match="features or attention, not 'words'"):
        _ = SyncRecipe(bundle=str(base.path), kind="words").network
    motion = SyncRecipe(bundle=str(base.path), encoders=(("cavp", 32, 64),), stems=("motion",))
    with pytest.raises(SettingError, match=r"stems names motion, .* the adapter reads cavp"):
        _ = motion.network
