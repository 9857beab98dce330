"""AudioLDM 2's UNet, as diffusers saves it (`unet/`): its configuration and its weights."""

from collections.abc import Mapping

from convert.rows import CONV, DENSE, POINTWISE, named, norm, stacked
from convert.table import ConversionError, Row, Table
from mfm_jax.models.unet import UNetConfig

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
# What the network has built in. A file may leave a setting out, or say just this.
BUILT_IN = {
    "act_fn": "silu",
    "class_embed_type": None,
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


def config(theirs: Mapping) -> UNetConfig:
    """The configuration that `unet/config.json` describes.

    A transformer's context goes by its place in `cross_attention_dim`: context 0 at the first two
    places, context 1 at the others, none where the entry is null. `attention_head_dim` is the
    number of heads, one for all levels or one each (modeling_audioldm2.py:289-295, 1049-1062).

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    missing = [name for name in READ if name not in theirs]
    if missing:
        raise ConversionError(f"unet config: {', '.join(missing)} not given")
    for name, value in BUILT_IN.items():
        if theirs.get(name, value) != value:
            raise ConversionError(f"unet config: {name} must be {value}, is {theirs[name]}")
    _check_layout(theirs)
    routes = [
        tuple(None if d is None else int(place > 1) for place, d in enumerate(level))
        for level in theirs["cross_attention_dim"]
    ]
    widths = _context_widths(routes, theirs["cross_attention_dim"])
    heads = theirs["attention_head_dim"]
    return UNetConfig(
        channels=tuple(theirs["block_out_channels"]),
        attentions=tuple(
            level if name == ATTENDED else ()
            for level, name in zip(routes, theirs["down_block_types"], strict=True)
        ),
        contexts=tuple(widths[route] for route in sorted(widths)),
        heads=heads if isinstance(heads, int) else tuple(heads),
        latent_channels=theirs["in_channels"],
        depth=theirs["transformer_layers_per_block"],
        resnets=theirs["layers_per_block"],
        groups=theirs["norm_num_groups"],
    )


def _check_layout(theirs: Mapping) -> None:
    """The way up mirrors the way down, and the middle, which always attends, its last level."""
    down, up = theirs["down_block_types"], theirs["up_block_types"]
    dims = theirs["cross_attention_dim"]
    wrong = {
        "down_block_types": not set(down) <= {PLAIN, ATTENDED} or down[-1] != ATTENDED,
        "up_block_types": list(up) != [name.replace("Down", "Up") for name in reversed(down)],
        "out_channels": theirs["out_channels"] != theirs["in_channels"],
        "transformer_layers_per_block": not isinstance(theirs["transformer_layers_per_block"], int),
        "layers_per_block": not isinstance(theirs["layers_per_block"], int),
        "cross_attention_dim": not isinstance(dims, list)
        or len(dims) != len(down)
        or not all(isinstance(level, list) for level in dims),
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise ConversionError(f"unet config: {name} {theirs[name]} is not AudioLDM 2's layout")


def _context_widths(routes: list[tuple], dims: list[list]) -> dict[int, int]:
    """The width of each context, which is the same wherever it is read."""
    widths: dict[int, int] = {}
    for level_routes, level in zip(routes, dims, strict=True):
        for route, width in zip(level_routes, level, strict=True):
            if route is not None and widths.setdefault(route, width) != width:
                raise ConversionError(f"unet config: context {route} has two widths in {dims}")
    return widths


def _block(theirs: str, ours: str) -> tuple[Row, ...]:
    """A block of a transformer."""
    projections = (
        Row(f"{theirs}.attn*.to_{name}.weight", f"{ours}.attn*.{name}.kernel", DENSE)
        for name in "qkv"
    )
    return (
        *norm(f"{theirs}.norm*", f"{ours}.norm*"),
        *projections,
        *named(f"{theirs}.attn*.to_out.0", f"{ours}.attn*.o", DENSE),
        # The first half of their projection is the value, the second the gate.
        *stacked(f"{theirs}.ff.net.0.proj", (f"{ours}.ff.up", f"{ours}.ff.gate")),
        *named(f"{theirs}.ff.net.2", f"{ours}.ff.down", DENSE),
    )


def _stage(theirs: str, ours: str) -> tuple[Row, ...]:
    """The resnets and transformers of a level, or of the middle."""
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
        *named("time_embedding.linear_1", "time.up", DENSE),
        *named("time_embedding.linear_2", "time.down", DENSE),
        *_stage("down_blocks.*", "down.*"),
        *named("down_blocks.*.resnets.*.conv_shortcut", "down.*.resnets.*.shortcut", POINTWISE),
        *named("down_blocks.*.downsamplers.0.conv", "halve.*", CONV),
        *_stage("mid_block", "mid"),
        *_stage("up_blocks.*", "up.*"),
        *named("up_blocks.*.resnets.*.conv_shortcut", "up.*.resnets.*.shortcut", POINTWISE),
        *named("up_blocks.*.upsamplers.0.conv", "double.*", CONV),
        *norm("conv_norm_out", "norm_out"),
        *named("conv_out", "conv_out", CONV),
    )
)
