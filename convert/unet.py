"""Convert AudioLDM 2's UNet, as diffusers saves it in `unet/`."""

from collections.abc import Mapping

from convert.configs import builtin, divides, integer, integers, required
from convert.rows import CONV, DENSE, POINTWISE, named, norm, stacked
from convert.table import ConversionError, Row, Table
from mfm_jax.models.unet import UNetConfig

FILE = "unet config"
PLAIN, ATTENDED = "DownBlock2D", "CrossAttnDownBlock2D"
READ = (
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "in_channels",
    "layers_per_block",
    "norm_num_groups",
    "out_channels",
    "transformer_layers_per_block",
    "up_block_types",
)
# Built into our network: a file may omit a setting, or have this value.
BUILT_IN = {
    "_class_name": "AudioLDM2UNet2DConditionModel",
    "act_fn": "silu",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "use_linear_projection": False,
}
CONTEXTS = (0, 0, 1, 1)
"""The context that a transformer reads, if any, by its index behind a resnet; at most these."""
ROWS = 256
"""Rows of latents (10.24 s) that diffusers' pipeline makes by default."""


def config(theirs: Mapping) -> UNetConfig:
    """Return the configuration that `unet/config.json` describes.

    The index in `cross_attention_dim` decides which context a transformer reads: context 0 for the
    first two, context 1 for the others, none where the entry is null. `attention_head_dim` is the
    number of heads, one for all levels or one each (modeling_audioldm2.py:289-295, 1049-1062).

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    builtin(theirs, BUILT_IN, FILE)
    required(theirs, READ, FILE)
    channels = integers(theirs, "block_out_channels", FILE)
    _check_layout(theirs, len(channels))
    levels = zip(theirs["down_block_types"], theirs["cross_attention_dim"], strict=True)
    dims = [level if name == ATTENDED else [] for name, level in levels]
    return UNetConfig(
        channels=channels,
        attentions=tuple(
            tuple(None if d is None else c for d, c in zip(level, CONTEXTS, strict=False))
            for level in dims
        ),
        contexts=_context_widths(dims),
        heads=_heads(theirs, channels),
        latent_channels=integer(theirs, "in_channels", FILE),
        depth=integer(theirs, "transformer_layers_per_block", FILE),
        resnets=integer(theirs, "layers_per_block", FILE),
        groups=integer(theirs, "norm_num_groups", FILE),
    )


def _check_layout(theirs: Mapping, levels: int) -> None:
    """Check that the up blocks mirror the down blocks, and that the last level attends.

    The middle always attends, with the settings of the last level.
    """

    def check(fits: bool, name: str) -> None:
        if not fits:
            raise ConversionError(f"{FILE}: {name} {theirs[name]} is not AudioLDM 2's layout")

    down, dims = theirs["down_block_types"], theirs["cross_attention_dim"]
    check(isinstance(down, list) and len(down) == levels, "down_block_types")
    check(all(kind in (PLAIN, ATTENDED) for kind in down), "down_block_types")
    check(down[-1] == ATTENDED, "down_block_types")
    check(theirs["up_block_types"] == _mirrored(down), "up_block_types")
    check(theirs["out_channels"] == integer(theirs, "in_channels", FILE), "out_channels")
    check(isinstance(dims, list) and len(dims) == levels, "cross_attention_dim")
    for level in dims:
        check(isinstance(level, list) and 0 < len(level) <= len(CONTEXTS), "cross_attention_dim")


def _mirrored(down: list[str]) -> list[str]:
    return [kind.replace("Down", "Up") for kind in reversed(down)]


def _context_widths(dims: list[list]) -> tuple[int, ...]:
    """Return the width of each context, which must be the same in all levels."""
    widths: dict[int, int] = {}
    for context, width in ((c, d) for level in dims for d, c in zip(level, CONTEXTS, strict=False)):
        if width is None:
            continue
        integer({"cross_attention_dim": width}, "cross_attention_dim", FILE)
        if widths.setdefault(context, width) != width:
            raise ConversionError(f"{FILE}: context {context} has two widths in {dims}")
    if 1 in widths and 0 not in widths:
        raise ConversionError(f"{FILE}: nothing in cross_attention_dim {dims} reads context 0")
    return tuple(widths[context] for context in sorted(widths))


def _heads(theirs: Mapping, channels: tuple[int, ...]) -> int | tuple[int, ...]:
    name, one = "attention_head_dim", not isinstance(theirs["attention_head_dim"], list)
    heads = len(channels) * (integer(theirs, name, FILE),) if one else integers(theirs, name, FILE)
    if len(heads) != len(channels):
        raise ConversionError(f"{FILE}: {name} {theirs[name]} has not one entry for each level")
    for width, parts, kind in zip(channels, heads, theirs["down_block_types"], strict=True):
        if kind == ATTENDED:
            divides(width, "block_out_channels", parts, name, FILE)
    return heads[0] if one else heads


def their_config(ours: UNetConfig) -> dict:
    """Return the `config.json` of `diffusers.AudioLDM2UNet2DConditionModel`.

    It says nothing of `seconds_per_row`, which only a timed UNet reads.

    Raises:
        ConversionError: diffusers has no such network.
    """
    _check_known_there(ours)
    dims = [[None if r is None else ours.contexts[r] for r in level] for level in ours.attentions]
    down = [ATTENDED if level else PLAIN for level in ours.attentions]
    return {
        **BUILT_IN,
        "attention_head_dim": ours.heads if isinstance(ours.heads, int) else list(ours.heads),
        "block_out_channels": list(ours.channels),
        # A level that does not attend needs an entry as well, which is not read.
        "cross_attention_dim": [level or dims[-1] for level in dims],
        "down_block_types": down,
        "in_channels": ours.latent_channels,
        "layers_per_block": ours.resnets,
        "norm_num_groups": ours.groups,
        "out_channels": ours.latent_channels,
        "sample_size": ROWS,
        "transformer_layers_per_block": ours.depth,
        "up_block_types": _mirrored(down),
    }


def _check_known_there(ours: UNetConfig) -> None:
    """Check that diffusers has such a network.

    Raises:
        ConversionError: says what it lacks.
    """
    if ours.timed:
        raise ConversionError("the UNet is timed, which no UNet of diffusers is")
    if not ours.attentions[-1]:
        raise ConversionError("the UNet's last level does not attend, as it must for diffusers")
    for level in ours.attentions:
        known = zip(level, CONTEXTS, strict=False)
        if len(level) > len(CONTEXTS) or any(c is not None and c != index for c, index in known):
            raise ConversionError(
                f"the UNet's attentions {level}: in diffusers the first two transformers read "
                f"context 0, the next two context 1 (or none), and there are no more"
            )
    read = {route for level in ours.attentions for route in level} - {None}
    if unread := sorted(set(range(len(ours.contexts))) - read):
        raise ConversionError(
            f"the UNet does not read context {unread[0]}, whose width diffusers cannot be told"
        )


def _block(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of a block of a transformer."""
    projections = (
        Row(f"{theirs}.attn*.to_{name}.weight", f"{ours}.attn*.{name}.kernel", DENSE)
        for name in "qkv"
    )
    return (
        *norm(f"{theirs}.norm1", f"{ours}.attn1_norm"),
        *norm(f"{theirs}.norm2", f"{ours}.attn2_norm"),
        *norm(f"{theirs}.norm3", f"{ours}.mlp_norm"),
        *projections,
        *named(f"{theirs}.attn*.to_out.0", f"{ours}.attn*.o", DENSE),
        # The first half of their projection is the value, the second the gate.
        *stacked(f"{theirs}.ff.net.0.proj", (f"{ours}.mlp.up", f"{ours}.mlp.gate")),
        *named(f"{theirs}.ff.net.2", f"{ours}.mlp.down", DENSE),
    )


def _stage(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of the resnets and transformers of a level, or of the middle."""
    resnet = f"{theirs}.resnets.*", f"{ours}.resnets.*"
    transformer = f"{theirs}.attentions.*", f"{ours}.attentions.*"
    return (
        *norm(f"{resnet[0]}.norm*", f"{resnet[1]}.norm*"),
        *named(f"{resnet[0]}.conv*", f"{resnet[1]}.conv*", CONV),
        *named(f"{resnet[0]}.time_emb_proj", f"{resnet[1]}.step", DENSE),
        *norm(f"{transformer[0]}.norm", f"{transformer[1]}.norm"),
        *named(f"{transformer[0]}.proj_in", f"{transformer[1]}.proj_in", POINTWISE),
        *_block(f"{transformer[0]}.transformer_blocks.*", f"{transformer[1]}.blocks.*"),
        *named(f"{transformer[0]}.proj_out", f"{transformer[1]}.proj_out", POINTWISE),
    )


TABLE = Table(
    rows=(
        *named("conv_in", "conv_in", CONV),
        *named("time_embedding.linear_1", "step_embedding.up", DENSE),
        *named("time_embedding.linear_2", "step_embedding.down", DENSE),
        *_stage("down_blocks.*", "down.*"),
        *named("down_blocks.*.resnets.*.conv_shortcut", "down.*.resnets.*.shortcut", POINTWISE),
        *named("down_blocks.*.downsamplers.0.conv", "downsample.*", CONV),
        *_stage("mid_block", "mid"),
        *_stage("up_blocks.*", "up.*"),
        *named("up_blocks.*.resnets.*.conv_shortcut", "up.*.resnets.*.shortcut", POINTWISE),
        *named("up_blocks.*.upsamplers.0.conv", "upsample.*", CONV),
        *norm("conv_norm_out", "norm_out"),
        *named("conv_out", "conv_out", CONV),
    )
)
