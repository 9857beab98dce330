"""Convert an adapter of the UNet to PyTorch and back; the original is this project.

config.json          `_class_name` and the configuration, as in a bundle
model.safetensors    `nn.Linear` as `[out, in]`, `nn.Conv1d` as `[out, in, kernel]`
"""

from convert.incoming import Incoming
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import DENSE, named, norm, stem
from convert.table import Row, Table
from convert.tensors import SourceError
from mfm_jax.bundle import UNKNOWN
from mfm_jax.models.adapters import AdapterConfig

MOVES = {"convs": "o i k -> k i o", "levels": DENSE}
"""How the axes of PyTorch's Conv1d and Linear move."""


def table(config: AdapterConfig) -> Table:
    """Return the table of an adapter of the kind that `config` names."""
    rows: list[Row] = []
    for name in config.streams:
        part = f"streams.{name}"
        if name in config.stems:
            rows += stem(f"{part}.stem")
        rows += (
            *norm(f"{part}.norm", f"{part}.norm"),
            *named(f"{part}.proj", f"{part}.proj", DENSE),
        )
    if config.kind == "features":
        convs, levels = (named(f"{name}.*", f"{name}.*", move) for name, move in MOVES.items())
        return Table((*rows, *convs, *levels))
    part = "attentions.*"
    for name in "qkv":
        rows.append(Row(f"{part}.attn.{name}.weight", f"{part}.attn.{name}.kernel", DENSE))
    rows.append(Row(f"{part}.time_proj.weight", f"{part}.time_proj.kernel", DENSE))
    rows += norm(f"{part}.norm", f"{part}.norm")
    return Table((*rows, *named(f"{part}.attn.o", f"{part}.attn.o", DENSE)))


def read(request: Request) -> Read:
    """Read an adapter that was exported from here.

    Raises:
        SourceError: the folder holds something else.
    """
    config = own_config(request, AdapterConfig)
    if config is None:
        raise SourceError(f"{request.folder()} holds no adapter that was exported from here")
    layout = table(config)
    weights = request.weights(layout.knows)
    licence = own_licence(request, UNKNOWN)
    return Read([Incoming("adapter", config, layout, weights.tensors, weights.files, licence)])


MODEL = Model(read, write_own("adapter", table))
