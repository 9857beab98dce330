"""Convert CAVP, Diff-Foley's `cavp_epoch66.ckpt`: both towers, or the video tower alone."""

from convert import licences
from convert.cnn14 import trunk_rows
from convert.incoming import Incoming
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import DENSE, batch_norm, named
from convert.table import Computed, Ignore, Row, Table
from mfm_jax.models.cavp import TEMPORAL, CAVPConfig

_SPACE = "o i 1 h w -> h w i o"
_TIME = "o i t 1 1 -> t 1 i o"
_POINT = "o i 1 1 1 -> 1 1 i o"


def _video_rows(ours: str) -> tuple[Row | Computed, ...]:
    """Return the rows of `CAVPVideo`, whose names start with `ours` here."""
    rows = [
        Row("video_encoder.conv1.conv.weight", f"{ours}tower.stem.conv.kernel", _SPACE),
        *batch_norm("video_encoder.conv1.bn", f"{ours}tower.stem.norm"),
    ]
    for i, temporal in enumerate(TEMPORAL):
        a, b = f"video_encoder.layer{i + 1}.*", f"{ours}tower.stages.{i}.*"
        moves = {"conv1": _TIME if temporal else _POINT, "conv2": _SPACE, "conv3": _POINT}
        for name, move in moves.items():
            rows.append(Row(f"{a}.{name}.conv.weight", f"{b}.{name}.conv.kernel", move))
        rows.extend(batch_norm(f"{a}.conv*.bn", f"{b}.conv*.norm"))
        rows.append(Row(f"{a}.downsample.conv.weight", f"{b}.shortcut.conv.kernel", _POINT))
        rows.extend(batch_norm(f"{a}.downsample.bn", f"{b}.shortcut.norm"))
    rows.extend(named("video_project_head", f"{ours}project", DENSE))
    return tuple(rows)


VIDEO_TABLE = Table(
    rows=_video_rows(""),
    ignore=(
        Ignore("spec_encoder.*", "the audio tower serves contrastive training only"),
        Ignore("logit_scale", "the temperature of the contrastive loss"),
    ),
)

TABLE = Table(
    rows=(
        *_video_rows("video."),
        *trunk_rows("spec_encoder.", "audio.trunk.", norm="bn"),
        *named("spec_encoder.fc1", "audio.fc1", DENSE),
        *named("spec_encoder.final_project", "audio.project", DENSE),
        Row("logit_scale", "logit_scale"),
    ),
)


def read(request: Request) -> Read:
    """Read the video tower, in the released sizes; the audio tower is kept for the way back."""
    weights = request.weights(VIDEO_TABLE.knows)
    config = own_config(request, CAVPConfig) or CAVPConfig.diff_foley()
    licence = own_licence(request, licences.CAVP)
    return Read([Incoming("cavp", config, VIDEO_TABLE, weights.tensors, weights.files, licence)])


MODEL = Model(
    read,
    write_own("cavp", lambda config: VIDEO_TABLE),
)
