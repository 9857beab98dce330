"""A mapper goes to PyTorch, runs there as docs/mapper_in_pytorch.md says, and comes back."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from jax import numpy as jnp
from safetensors.torch import load_file, save_file

from benchmarks import documented
from convert.__main__ import main
from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.mapper import Mapper, MapperConfig, Stream, Streams, build_mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from tests.convert import torch_mapper

AGAINST = "docs/mapper_in_pytorch.md"
TOLERANCE = 1e-4  # float32 on both sides, and each LOA token is made from those before it
SIZES = (("cavp", 5, 12), ("timechat", 7, 10))
LOA_WIDTH = 14
FUSIONS = ("tokens", "channels", "wrapped")


def gpt2_config(fusion: str, head: bool) -> MapperConfig:
    """Return a config with different sizes; without a head GPT-2 must be as wide as LOA."""
    prefix = {"tokens": 13, "channels": 6, "wrapped": 16}[fusion]
    loa = LOA(grid=(6, 8), pool=(2, 4))
    width = 18 if head else LOA_WIDTH
    # The last LOA token is not read, so that this is exactly enough.
    gpt2 = GPT2Config(width=width, depth=3, heads=2, positions=prefix + loa.tokens - 1)
    return MapperConfig(SIZES, LOA_WIDTH, loa, fusion=fusion, gpt2=gpt2, head=head)


CONFIGS = {
    **{fusion: gpt2_config(fusion, head=False) for fusion in FUSIONS},
    **{f"{fusion}, head": gpt2_config(fusion, head=True) for fusion in FUSIONS},
    "tokens, stem": replace(gpt2_config("tokens", head=True), stems=("timechat",)),
    **{
        kind: MapperConfig(SIZES, LOA_WIDTH, LOA(grid=(6, 8), pool=(2, 4)), kind=kind)
        for kind in ("linear_pooled", "linear_flat")
    },
}


@dataclass(frozen=True)
class Exported:
    """A mapper of ours in a bundle, and the exported folder."""

    name: str
    config: MapperConfig
    network: Mapper
    bundle: Path
    folder: Path


def drawn(config: MapperConfig, seed: int) -> Mapper:
    """Return a mapper whose weights are neither zero nor one."""
    network = abstract(partial(build_mapper, config))
    rng = np.random.default_rng(seed)
    weights = {}
    for name, leaf in named_weights(network).items():
        values = 0.3 * rng.standard_normal(leaf.shape, np.float32)
        positive = name.endswith(("scale", "loa_std"))
        weights[name] = jax.device_put(np.exp(values) if positive else values)
    return with_weights(network, weights)


def write_mapper(bundle: Path, config: MapperConfig, network: Mapper, dtype=None) -> None:
    source = Source("tests/convert/test_mapper.py", "none")
    write_bundle(bundle, {"mapper": (config, network, source)}, dtype=dtype)


def convert(*arguments: str | Path) -> int:
    return main(["mapper", *map(str, arguments)])


def refused(capsys, *arguments: str | Path) -> str:
    """Return the single line that a refused conversion prints."""
    assert convert(*arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Callable[[str], Exported]:
    """Exports the mapper of a name in `CONFIGS`, once."""

    @cache
    def exported(name: str) -> Exported:
        place, config = tmp_path_factory.mktemp("mapper"), CONFIGS[name]
        network = drawn(config, seed=list(CONFIGS).index(name))
        write_mapper(place / "bundle", config, network)
        assert convert(place / "bundle", "-o", place / "folder", "--to", "torch") == 0
        return Exported(name, config, network, place / "bundle", place / "folder")

    return exported


@pytest.fixture(params=CONFIGS)
def exported(request, export) -> Exported:
    return export(request.param)


@pytest.fixture
def copy(export, tmp_path) -> Path:
    """An exported folder to damage."""
    return shutil.copytree(export("tokens, head").folder, tmp_path / "folder")


@pytest.fixture(scope="module")
def program():
    return documented.program()


def features(config: MapperConfig, seed: int, *, padded: tuple[str, ...] = ()) -> Streams:
    """Two windows. TimeChat's tokens share times to within the 0.1 ms that count as equal; in
    the second they lie midway between CAVP's. With padding the second window begins with padding,
    which then sees no token at all.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, count, width in config.encoders:
        shared, late = (1, 0.0) if name == "cavp" else (2, 0.25)
        times = np.arange(count) // shared * 0.5 + np.arange(count) % shared * 3e-5
        mask = np.ones((2, count), bool)
        mask[1, :3] = mask[0, -1] = False
        found[name] = Stream(
            jnp.asarray(rng.standard_normal((2, count, width), np.float32)),
            jnp.asarray(np.stack([times, times + late]), jnp.float32),
            jnp.asarray(mask) if name in padded else None,
        )
    return found


@jax.jit
def generate(mapper: Mapper, streams: Streams):
    return mapper.generate(streams)


def theirs(program, folder: Path, streams: Streams) -> np.ndarray:
    return program.Mapper(folder).generate(torch_mapper.streams(streams, program)).numpy()


def assert_same_weights(before: Bundle, after: Bundle) -> None:
    """Check that configuration, names, precisions and every bit are the same."""
    assert after.config("mapper") == before.config("mapper")
    first, second = (named_weights(bundle.load("mapper")) for bundle in (before, after))
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert np.asarray(array).tobytes() == np.asarray(second[name]).tobytes(), name


@pytest.mark.parity
@pytest.mark.parametrize("padded", [(), ("cavp",), ("timechat",)], ids=str)
def test_the_documented_program_generates_what_we_generate(exported, program, parity, padded):
    streams = features(exported.config, seed=1, padded=padded)
    expected = generate(exported.network, streams)
    assert expected.shape == (2, exported.config.loa.tokens, LOA_WIDTH)
    result = theirs(program, exported.folder, streams)
    name = f"mapper, {exported.name}" + (f", {' and '.join(padded)} padded" if padded else "")
    parity(name, AGAINST, expected, result, TOLERANCE)


@pytest.mark.parity
def test_another_number_of_tokens_at_uneven_times(export, program, parity):
    """Ten seconds of them: at the shortest period of the clock that is a hundred turns.

    The encoders come in another order than in training, which is none of the mapper's business.
    """
    mapper, rng, streams = export("channels, head"), np.random.default_rng(2), {}
    for name, count, width in (("timechat", 40, 10), ("cavp", 4, 12)):
        seconds = np.sort(rng.uniform(0, 10.24, (2, count)).astype(np.float32), axis=1)
        tokens = rng.standard_normal((2, count, width), np.float32)
        streams[name] = Stream(jnp.asarray(tokens), jnp.asarray(seconds))
    result = theirs(program, mapper.folder, streams)
    name = f"mapper, {mapper.name}, uneven times"
    parity(name, AGAINST, generate(mapper.network, streams), result, TOLERANCE)


def test_the_document_names_every_file_and_every_tensor(exported):
    written = {str(f.relative_to(exported.folder)) for f in exported.folder.rglob("*.*")}
    documented = torch_mapper.files()
    if exported.config.kind != "gpt2":
        documented = {name for name in documented if not name.startswith("gpt2/")}
    assert written == documented
    found = load_file(exported.folder / "fusion.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == torch_mapper.tensors(exported.config)


def test_transformers_loads_the_trunk_strictly(exported):
    if exported.config.kind != "gpt2":
        assert not (exported.folder / "gpt2").exists()
        return
    loaded, info = transformers.GPT2Model.from_pretrained(
        exported.folder / "gpt2", output_loading_info=True
    )
    assert not any(info.values()), info
    stored = load_file(exported.folder / "gpt2" / "model.safetensors")
    assert stored.keys() == loaded.state_dict().keys()
    assert torch.equal(stored["wte.weight"], torch.zeros(1, exported.config.gpt2.width))


def test_back_in_every_bit_is_the_same(exported, tmp_path):
    assert convert(exported.folder, "-o", tmp_path / "bundle") == 0
    assert_same_weights(Bundle.open(exported.bundle), Bundle.open(tmp_path / "bundle"))


@pytest.mark.parity
def test_the_licence_goes_along(export, tmp_path):
    licence = "Apache-2.0 AND CC-BY-NC-4.0"
    exported = export("tokens, head")
    source = Source("tests", licence)
    write_bundle(tmp_path / "b", {"mapper": (exported.config, exported.network, source)})
    assert convert(tmp_path / "b", "-o", tmp_path / "f", "--to", "torch") == 0
    assert convert(tmp_path / "f", "-o", tmp_path / "again") == 0
    assert Bundle.open(tmp_path / "again").entries["mapper"].source.licence == licence
    assert gpt2(tmp_path / "f" / "gpt2", tmp_path / "gpt2") == licence


def gpt2(folder: Path, bundle: Path) -> str:
    """Convert a folder into a bundle as GPT-2 and return the licence that it gets."""
    assert main(["gpt2", str(folder), "-o", str(bundle)]) == 0
    return Bundle.open(bundle).entries["gpt2"].source.licence


def test_the_miniature_there_and_back(program, parity, tmp_path):
    assert convert(TINY_BUNDLE, "-o", tmp_path / "folder", "--to", "torch") == 0
    bundle = Bundle.open(TINY_BUNDLE)
    streams = features(bundle.config("mapper"), seed=3)
    expected = generate(bundle.load("mapper", jnp.float32), streams)
    result = theirs(program, tmp_path / "folder", streams)
    parity("mapper, the miniature", AGAINST, expected, result, TOLERANCE, relative_to="spread")
    assert convert(tmp_path / "folder", "-o", tmp_path / "bundle") == 0
    assert_same_weights(bundle, Bundle.open(tmp_path / "bundle"))


@pytest.mark.parity
def test_the_documented_use_gives_loa(program, tmp_path, monkeypatch):
    assert convert(TINY_BUNDLE, "-o", tmp_path / "mapper", "--to", "torch") == 0
    monkeypatch.chdir(tmp_path)
    documented.use(program)
    config = Bundle.open(TINY_BUNDLE).config("mapper")
    assert program.loa.shape == (2, config.loa.tokens, config.loa_width)
    assert torch.isfinite(program.loa).all()


def test_bfloat16_stays_bfloat16(program, parity, tmp_path):
    config = CONFIGS["wrapped, head"]
    write_mapper(tmp_path / "bundle", config, drawn(config, seed=4), jnp.bfloat16)
    assert convert(tmp_path / "bundle", "-o", tmp_path / "folder", "--to", "torch") == 0
    found = load_file(tmp_path / "folder" / "fusion.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    bundle, streams = Bundle.open(tmp_path / "bundle"), features(config, seed=4)
    expected = generate(bundle.load("mapper", jnp.float32), streams)
    result = theirs(program, tmp_path / "folder", streams)
    parity("mapper, stored in bfloat16", AGAINST, expected, result, TOLERANCE)
    assert convert(tmp_path / "folder", "-o", tmp_path / "again") == 0
    assert_same_weights(bundle, Bundle.open(tmp_path / "again"))


@pytest.mark.parity
def test_a_mapper_that_was_changed_in_pytorch_comes_in(program, parity, copy, tmp_path):
    changed = program.Mapper(copy)
    generator = torch.Generator().manual_seed(5)
    for tensor in (*changed.weights.values(), *changed.gpt2.state_dict().values()):
        tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    changed.gpt2.save_pretrained(copy / "gpt2")
    save_file(changed.weights, copy / "fusion.safetensors")
    assert convert(copy, "-o", tmp_path / "bundle") == 0
    bundle = Bundle.open(tmp_path / "bundle")
    streams = features(bundle.config("mapper"), seed=5)
    result = changed.generate(torch_mapper.streams(streams, program)).numpy()
    expected = generate(bundle.load("mapper"), streams)
    parity("mapper, changed in PyTorch", AGAINST, expected, result, TOLERANCE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no mapper that was exported from here"),
        ({"model_type": "gpt2"}, "no mapper that was exported from here"),
        ({"_mfm_jax": {"width": 24, "depth": 2, "heads": 3}}, "unknown fields: depth, heads"),
        ("broken", "config.json is not valid JSON"),
    ],
    ids=["empty", "GPT-2", "another network", "damaged"],
)
def test_a_folder_that_holds_something_else_is_one_line(tmp_path, capsys, config, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    assert message in refused(capsys, folder, "-o", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("lost", ["fusion.safetensors", "gpt2/model.safetensors"])
def test_a_lost_file_is_named(copy, tmp_path, capsys, lost):
    (copy / lost).unlink()
    assert lost.split("/")[0] in refused(capsys, copy, "-o", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_tensors_that_do_not_fit_are_listed(copy, tmp_path, capsys):
    found = load_file(copy / "fusion.safetensors")
    found["loa_inn.bias"] = found.pop("loa_in.bias")
    found["loa_out.weight"] = found["loa_out.weight"].T.contiguous()
    save_file(found, copy / "fusion.safetensors")
    printed = refused(capsys, copy, "-o", tmp_path / "bundle")
    assert "missing: loa_in.bias" in printed
    assert "unknown: loa_inn.bias" in printed
    assert "loa_out.weight is (18, 14), should be (14, 18)" in printed
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_without_a_mapper_and_a_folder_in_use_are_refused(tmp_path, capsys):
    write_bundle(tmp_path / "bundle", {})
    out = tmp_path / "folder"
    printed = refused(capsys, tmp_path / "bundle", "-o", out, "--to", "torch")
    assert "has no 'mapper'" in printed
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "exists" in refused(capsys, TINY_BUNDLE, "-o", out, "--to", "torch")
    assert [f.name for f in out.iterdir()] == ["notes.txt"]
