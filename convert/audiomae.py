"""Convert AudioMAE's encoder: `pretrained.pth` and `audiomae_16k_128bins.ckpt` (key `model`).

AudioLDM2's own checkpoints have the same keys with prefix `IN_AUDIOLDM2`; the diffusers port has
no AudioMAE.
"""

from convert import licences
from convert.incoming import Incoming, without_prefix
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import DENSE, named, norm, stacked
from convert.table import Ignore, Row, Table
from mfm_jax.bundle import combined
from mfm_jax.models.audiomae import AudioMAEConfig

IN_AUDIOLDM2 = "cond_stage_models.0.cond_stage_models.2.audiomae.model."


def table(config: AudioMAEConfig) -> Table:
    """Return the table of the encoder; `config` gives the size of a patch."""
    qkv = ("blocks.*.attn.q", "blocks.*.attn.k", "blocks.*.attn.v")
    return Table(
        rows=(
            Row("cls_token", "cls_token", "1 1 d -> d"),
            Row("pos_embed", "pos_embed", "1 l d -> l d"),
            Row("patch_embed.proj.weight", "patch_embed.kernel", "o 1 p q -> (p q) o"),
            Row("patch_embed.proj.bias", "patch_embed.bias"),
            *norm("blocks.*.norm1", "blocks.*.attn_norm"),
            *stacked("blocks.*.attn.qkv", qkv),
            *named("blocks.*.attn.proj", "blocks.*.attn.o", DENSE),
            *norm("blocks.*.norm2", "blocks.*.mlp_norm"),
            *named("blocks.*.mlp.fc1", "blocks.*.mlp.up", DENSE),
            *named("blocks.*.mlp.fc2", "blocks.*.mlp.down", DENSE),
            *norm("norm", "norm"),
        ),
        ignore=(
            Ignore("decoder_*", "the decoder serves pretraining only"),
            Ignore("mask_token", "an input of the decoder"),
        ),
        sizes={"p": config.patch, "q": config.patch},
    )


def read(request: Request) -> Read:
    """Read the encoder from its own file or from AudioLDM2's checkpoint."""
    config = own_config(request, AudioMAEConfig) or AudioMAEConfig.base()
    layout = table(config)
    weights = request.weights(lambda key: layout.knows(key.removeprefix(IN_AUDIOLDM2)))
    inside = without_prefix(weights.tensors, IN_AUDIOLDM2)
    tensors = inside or weights.tensors
    released = combined([licences.AUDIOMAE, licences.AUDIOLDM2]) if inside else licences.AUDIOMAE
    licence = own_licence(request, released)
    return Read([Incoming("audiomae", config, layout, tensors, weights.files, licence)])


MODEL = Model(
    read,
    write_own("audiomae", table),
)
