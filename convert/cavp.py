"""Convert CAVP, Diff-Foley's `cavp_epoch66.ckpt`: two components, of which the second may lack.

Generation needs the video tower, `cavp`; scores compare it with the audio tower, `cavp_audio`.
"""

from convert import licences
from convert.cnn14 import trunk_rows
from convert.incoming import Derived, Incoming
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.outgoing import Outgoing
from convert.rows import DENSE, batch_norm, named
from convert.table import Computed, Ignore, Row, Table
from mfm_jax.bundle import Bundle
from mfm_jax.models.cavp import TEMPORAL, CAVPConfig

AUDIO = "spec_encoder."
"""The beginning of the names of the audio tower's tensors."""
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


def _audio_rows(ours: str) -> tuple[Row | Computed, ...]:
    """Return the rows of `CAVPAudio`, whose names start with `ours` here."""
    return (
        *trunk_rows(AUDIO, f"{ours}trunk.", norm="bn"),
        *named(f"{AUDIO}fc1", f"{ours}fc1", DENSE),
        *named(f"{AUDIO}final_project", f"{ours}project", DENSE),
    )


VIDEO_TABLE = Table(
    rows=_video_rows(""),
    ignore=(Ignore("logit_scale", "the temperature of the contrastive loss"),),
)

AUDIO_TABLE = Table(rows=_audio_rows(""))

TABLE = Table(
    rows=(*_video_rows("video."), *_audio_rows("audio."), Row("logit_scale", "logit_scale"))
)


def read(request: Request) -> Read:
    """Read both towers, in the released sizes. A file without the audio tower gives the other."""
    weights = request.weights(TABLE.knows)
    config = own_config(request, CAVPConfig) or CAVPConfig.diff_foley()
    licence = own_licence(request, licences.CAVP)
    audio = {key: t for key, t in weights.tensors.items() if key.startswith(AUDIO)}
    video = {key: t for key, t in weights.tensors.items() if key not in audio}
    towers: list[Incoming | Derived] = [
        Incoming("cavp", config, VIDEO_TABLE, video, weights.files, licence)
    ]
    if audio:
        towers.append(Incoming("cavp_audio", config, AUDIO_TABLE, audio, weights.files, licence))
    return Read(towers)


def write(bundle: Bundle) -> list[Outgoing]:
    """Return both towers, for one file; the video tower alone where they do not belong together."""
    towers = write_own("cavp", lambda config: VIDEO_TABLE)(bundle)
    if bundle.made_together("cavp", "cavp_audio"):
        towers += write_own("cavp_audio", lambda config: AUDIO_TABLE)(bundle)
    return towers


MODEL = Model(read, write)
