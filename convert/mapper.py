"""Convert our mapper to PyTorch and back: a GPT-2 that transformers loads, and all the rest.

    config.json               `_class_name` and the configuration, as in a bundle
    gpt2/config.json          of `transformers.GPT2Model`
    gpt2/model.safetensors    with a word table of one row, which is never used
    fusion.safetensors        everything else, `nn.Linear` weights as `[out, in]`

A linear mapper has no `gpt2/`. docs/mapper_in_pytorch.md tells how to run it.
"""

from convert import gpt2
from convert.gpt2 import rows, words
from convert.incoming import Incoming, with_prefix
from convert.licences import LICENCE
from convert.model import CONFIG, OURS, WEIGHTS, Model, Read, Request, own_config, own_licence
from convert.outgoing import Outgoing
from convert.rows import DENSE, named, norm, stem
from convert.table import Row, Table
from convert.tensors import SourceError
from mfm_jax.bundle import UNKNOWN, Bundle
from mfm_jax.mapper import MapperConfig
from mfm_jax.runtime.config import to_json

GPT2 = "gpt2."
"""The prefix of GPT-2's tensors."""
REST = "fusion.safetensors"
"""The file of all other tensors."""


def table(config: MapperConfig) -> Table:
    """Return the table of a mapper."""
    units = [Row(name, name) for name in ("loa_mean", "loa_std")]
    if config.kind != "gpt2":
        return Table((*named("proj", "proj", DENSE), *units))
    head = [*named("loa_in", "loa_in", DENSE), *named("loa_out", "loa_out", DENSE), *units]
    rest = _fusion(config) + _stems(config) + (head if config.head else [])
    return Table((*rows(GPT2, "gpt2."), words(GPT2, "gpt2.", config.gpt2.width), *rest))


def _fusion(config: MapperConfig) -> list[Row]:
    if config.fusion == "wrapped":
        vectors = [Row(f"fusion.{name}", f"fusion.{name}") for name in ("start", "end")]
        linears = (named(f"fusion.proj.{n}", f"fusion.proj.{n}", DENSE) for n in config.widths)
        return [*vectors, *(row for pair in linears for row in pair)]
    found = [Row("fusion.start", "fusion.start")]
    for encoder in config.widths:
        part = f"fusion.proj.{encoder}"
        found += [*norm(f"{part}.norm", f"{part}.norm"), Row(f"{part}.encoder", f"{part}.encoder")]
        found += named(f"{part}.proj", f"{part}.proj", DENSE)
    return found


def _stems(config: MapperConfig) -> list[Row]:
    return [row for name in config.stems for row in stem(f"stems.{name}")]


def read(request: Request) -> Read:
    """Read a mapper that was exported from here.

    Raises:
        SourceError: the folder holds something else.
    """
    folder = request.folder()
    ours = own_config(request, MapperConfig)
    if ours is None:
        raise SourceError(f"{folder} holds no mapper that was exported from here")
    licence = own_licence(request, UNKNOWN)
    layout = table(ours)
    rest = request.open(folder / REST, layout.knows)
    tensors, files = dict(rest.tensors), (folder / CONFIG, *rest.files)
    if ours.kind == "gpt2":
        trunk = request.open(folder / "gpt2", lambda key: layout.knows(GPT2 + key))
        tensors |= with_prefix(trunk.tensors, GPT2)
        files += trunk.files
    return Read([Incoming("mapper", ours, layout, tensors, files, licence)])


def write(bundle: Bundle) -> list[Outgoing]:
    """Return the files listed in the module's docstring."""
    ours = bundle.config("mapper")
    network = "GPT2Mapper" if ours.kind == "gpt2" else "LinearMapper"
    stated = {LICENCE: bundle.entries["mapper"].source.licence}
    described = {CONFIG: {"_class_name": network, OURS: to_json(ours)} | stated}
    weights = {"": REST}
    if ours.kind == "gpt2":
        described[f"gpt2/{CONFIG}"] = gpt2.their_config(ours.gpt2, 1) | stated
        weights[GPT2] = f"gpt2/{WEIGHTS}"
    return [Outgoing("mapper", table(ours), described, weights)]


MODEL = Model(read, write)
