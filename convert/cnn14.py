"""Convert Cnn14, PANNs' `Cnn14_16k_mAP=0.438.pth`, whose trunk CAVP shares."""

from convert import licences
from convert.incoming import Incoming
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import CONV, DENSE, batch_norm, named
from convert.table import Computed, Ignore, Row, Table
from mfm_jax.models.cnn14 import Cnn14Config

BLOCKS = 6


def trunk_rows(theirs: str, ours: str, *, norm: str) -> tuple[Row | Computed, ...]:
    """Return the rows of the trunk; `norm` is their name of the BatchNorm over mel bins."""
    rows = list(batch_norm(f"{theirs}{norm}", f"{ours}norm"))
    for i in range(BLOCKS):
        block = f"{theirs}conv_block{i + 1}"
        rows.append(Row(f"{block}.conv*.weight", f"{ours}blocks.{i}.conv*.kernel", CONV))
        rows.extend(batch_norm(f"{block}.bn*", f"{ours}blocks.{i}.norm*"))
    return tuple(rows)


TABLE = Table(
    rows=(
        *trunk_rows("", "trunk.", norm="bn0"),
        *named("fc1", "fc1", DENSE),
        *named("fc_audioset", "classify", DENSE),
    ),
    ignore=(
        Ignore("spectrogram_extractor.*", "a windowed DFT, which the front end computes"),
        Ignore("logmel_extractor.*", "the mel matrix, which the front end computes"),
    ),
)


def read(request: Request) -> Read:
    """Read the tagger; the tables of its front end are kept for the way back."""
    weights = request.weights()
    config = own_config(request, Cnn14Config) or Cnn14Config.panns()
    licence = own_licence(request, licences.CNN14)
    parts = Incoming("cnn14", config, TABLE, weights.tensors, weights.files, licence)
    return Read([parts])


MODEL = Model(
    read,
    write_own("cnn14", lambda config: TABLE),
)
