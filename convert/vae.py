"""Convert AudioLDM 2's VAE, as diffusers saves it in `vae/`."""

import re
from collections.abc import Mapping

from convert.configs import builtin, integer, integers, number, required
from convert.incoming import renamed
from convert.rows import CONV, DENSE, POINTWISE, named, norm
from convert.table import Row, Table
from convert.tensors import Reshaped, Tensor
from mfm_jax.models.vae import VAEConfig

FILE = "vae config"
READ = (
    "block_out_channels",
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
    "scaling_factor",
)
# The library's default is 3 channels, those of an image.
REQUIRED = {"in_channels": 1, "out_channels": 1}
# A file may omit these, or have these values.
BUILT_IN = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
LEVELS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
"""The type of every level, in the encoder and in the decoder."""


def config(theirs: Mapping) -> VAEConfig:
    """Return the configuration that `vae/config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have. The
            `scaling_factor` is learnt, so it has no default.
    """
    builtin(theirs, BUILT_IN, FILE)
    required(theirs, (*READ, *REQUIRED, *LEVELS), FILE)
    builtin(theirs, REQUIRED, FILE)
    channels = integers(theirs, "block_out_channels", FILE)
    builtin(theirs, {name: len(channels) * [level] for name, level in LEVELS.items()}, FILE)
    return VAEConfig(
        scaling_factor=number(theirs, "scaling_factor", FILE),
        channels=channels,
        resnets=integer(theirs, "layers_per_block", FILE),
        latent_channels=integer(theirs, "latent_channels", FILE),
        groups=integer(theirs, "norm_num_groups", FILE),
    )


def their_config(ours: VAEConfig) -> dict:
    """Return the `config.json` of `diffusers.AutoencoderKL`."""
    return {
        **REQUIRED,
        **BUILT_IN,
        **{name: len(ours.channels) * [level] for name, level in LEVELS.items()},
        "block_out_channels": list(ours.channels),
        "latent_channels": ours.latent_channels,
        "layers_per_block": ours.resnets,
        "norm_num_groups": ours.groups,
        "scaling_factor": ours.scaling_factor,
    }


ATTENTION = re.compile(r"(?P<front>.*\.attentions\.\d+\.)(?P<map>\w+)(?P<rest>\.(weight|bias))")
CALLED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers calls the maps of its attention, by their name in older files."""


def spelling(key: str) -> str:
    """Return what diffusers calls a tensor today (`_convert_deprecated_attention_blocks`)."""
    found = ATTENTION.fullmatch(key)
    if found is None or found["map"] not in CALLED:
        return key
    return f"{found['front']}{CALLED[found['map']]}{found['rest']}"


def spelled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under today's names, and maps that are 1 x 1 convolutions as matrices.

    Raises:
        ConversionError: a tensor comes under both names.
    """
    return {
        key: Reshaped(tensor, tensor.shape[:2])
        if ".attentions." in key and tensor.shape[2:] == (1, 1)
        else tensor
        for key, tensor in renamed(tensors, spelling, ()).items()
    }


def _half(half: str, levels: tuple[str, str], resize: tuple[str, str]) -> tuple[Row, ...]:
    """Return the rows of the encoder or the decoder; the names of their levels differ."""
    level = f"{half}.{levels[0]}.*", f"{half}.{levels[1]}.*"
    middle = f"{half}.mid_block", f"{half}.middle"
    attn = f"{half}.mid_block.attentions.0", f"{half}.middle.attn"
    return (
        *named(f"{half}.conv_in", f"{half}.conv_in", CONV),
        *norm(f"{level[0]}.resnets.*.norm*", f"{level[1]}.resnets.*.norm*"),
        *named(f"{level[0]}.resnets.*.conv*", f"{level[1]}.resnets.*.conv*", CONV),
        *named(
            f"{level[0]}.resnets.*.conv_shortcut",
            f"{level[1]}.resnets.*.shortcut",
            POINTWISE,
        ),
        *named(f"{level[0]}.{resize[0]}", f"{level[1]}.{resize[1]}", CONV),
        *norm(f"{middle[0]}.resnets.*.norm*", f"{middle[1]}.resnets.*.norm*"),
        *named(f"{middle[0]}.resnets.*.conv*", f"{middle[1]}.resnets.*.conv*", CONV),
        *norm(f"{attn[0]}.group_norm", f"{middle[1]}.norm"),
        *named(f"{attn[0]}.to_q", f"{attn[1]}.q", DENSE),
        *named(f"{attn[0]}.to_k", f"{attn[1]}.k", DENSE),
        *named(f"{attn[0]}.to_v", f"{attn[1]}.v", DENSE),
        *named(f"{attn[0]}.to_out.0", f"{attn[1]}.o", DENSE),
        *norm(f"{half}.conv_norm_out", f"{half}.norm_out"),
        *named(f"{half}.conv_out", f"{half}.conv_out", CONV),
    )


TABLE = Table(
    rows=(
        *_half("encoder", ("down_blocks", "down"), ("downsamplers.0.conv", "downsample")),
        *named("quant_conv", "quant", POINTWISE),
        *named("post_quant_conv", "post_quant", POINTWISE),
        *_half("decoder", ("up_blocks", "up"), ("upsamplers.0.conv", "upsample")),
    )
)
