"""Convert Synchformer: `24-01-04T16-39-21.pt`, or MMAudio's `synchformer_state_dict.pth`.

MMAudio's file holds the same tensors without the nesting.
"""

from convert import licences
from convert.incoming import Incoming
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import DENSE, named, norm, stacked
from convert.table import Ignore, Row, Table
from mfm_jax.models.synchformer import SynchformerConfig

_TOKEN, _TOKENS = "1 1 d -> d", "1 l d -> l d"


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of an attention whose query, key and value are one linear map of theirs."""
    qkv = tuple(f"{ours}.{name}" for name in "qkv")
    return *stacked(f"{theirs}.qkv", qkv), *named(f"{theirs}.proj", f"{ours}.o", DENSE)


def _pool(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of a pooling, which is an encoder layer of PyTorch there."""
    weight, bias = stacked("", tuple(f"{ours}.block.attn.{name}" for name in "qkv"))
    return (
        Row(f"{theirs}.cls_token", f"{ours}.cls_token", _TOKEN),
        Row(f"{theirs}.self_attn.in_proj_weight", weight.ours, weight.move),
        Row(f"{theirs}.self_attn.in_proj_bias", bias.ours, bias.move),
        *named(f"{theirs}.self_attn.out_proj", f"{ours}.block.attn.o", DENSE),
        *norm(f"{theirs}.norm1", f"{ours}.block.attn_norm"),
        *norm(f"{theirs}.norm2", f"{ours}.block.mlp_norm"),
        *named(f"{theirs}.linear1", f"{ours}.block.mlp.up", DENSE),
        *named(f"{theirs}.linear2", f"{ours}.block.mlp.down", DENSE),
    )


def _video() -> tuple[Row, ...]:
    a, b = "vfeat_extractor", "video"
    blocks, ours = f"{a}.blocks.*", f"{b}.blocks.*"
    return (
        Row(f"{a}.cls_token", f"{b}.cls_token", _TOKEN),
        Row(f"{a}.pos_embed", f"{b}.pos_embed", _TOKENS),
        Row(f"{a}.temp_embed", f"{b}.time_embed", _TOKENS),
        *named(f"{a}.patch_embed_3d.proj", f"{b}.patch_embed", "o c p q r -> (p q r c) o"),
        *norm(f"{blocks}.norm3", f"{ours}.time_norm"),
        *_attention(f"{blocks}.timeattn", f"{ours}.time_attn"),
        *norm(f"{blocks}.norm1", f"{ours}.space_norm"),
        *_attention(f"{blocks}.attn", f"{ours}.space_attn"),
        *norm(f"{blocks}.norm2", f"{ours}.mlp_norm"),
        *named(f"{blocks}.mlp.fc1", f"{ours}.mlp.up", DENSE),
        *named(f"{blocks}.mlp.fc2", f"{ours}.mlp.down", DENSE),
        *norm(f"{a}.norm", f"{b}.norm"),
        *_pool(f"{a}.spatial_attn_agg", f"{b}.pool"),
    )


def _audio() -> tuple[Row, ...]:
    a, b = "afeat_extractor.ast", "audio"
    embed, blocks, ours = f"{a}.embeddings", f"{a}.encoder.layer.*", f"{b}.blocks.*"
    qkv = {"query": "q", "key": "k", "value": "v"}
    return (
        Row(f"{embed}.cls_token", f"{b}.cls_token", _TOKEN),
        Row(f"{embed}.distillation_token", f"{b}.distillation_token", _TOKEN),
        Row(f"{embed}.position_embeddings", f"{b}.pos_embed", _TOKENS),
        *named(f"{embed}.patch_embeddings.projection", f"{b}.patch_embed", "o 1 m t -> t m 1 o"),
        *norm(f"{blocks}.layernorm_before", f"{ours}.attn_norm"),
        *(
            row
            for name, short in qkv.items()
            for row in named(f"{blocks}.attention.attention.{name}", f"{ours}.attn.{short}", DENSE)
        ),
        *named(f"{blocks}.attention.output.dense", f"{ours}.attn.o", DENSE),
        *norm(f"{blocks}.layernorm_after", f"{ours}.mlp_norm"),
        *named(f"{blocks}.intermediate.dense", f"{ours}.mlp.up", DENSE),
        *named(f"{blocks}.output.dense", f"{ours}.mlp.down", DENSE),
        *norm(f"{a}.layernorm", f"{b}.norm"),
        *_pool("afeat_extractor.freq_attn_agg", f"{b}.pool"),
    )


def _sync() -> tuple[Row, ...]:
    a, b = "transformer", "sync"
    blocks, ours = f"{a}.blocks.*", f"{b}.blocks.*"
    attn = {"query": "q", "key": "k", "value": "v", "proj": "o"}
    return (
        *named("vproj", f"{b}.video_proj", DENSE),
        *named("aproj", f"{b}.audio_proj", DENSE),
        *norm(f"{a}.vis_in_lnorm", f"{b}.video_norm"),
        *norm(f"{a}.aud_in_lnorm", f"{b}.audio_norm"),
        Row(f"{a}.OFF_tok", f"{b}.offset_token", _TOKEN),
        Row(f"{a}.MOD_tok", f"{b}.modality_token", _TOKEN),
        Row(f"{a}.pos_emb_cfg.pos_emb", f"{b}.pos_embed", _TOKENS),
        *norm(f"{blocks}.ln1", f"{ours}.attn_norm"),
        *(
            row
            for name, short in attn.items()
            for row in named(f"{blocks}.attn.{name}", f"{ours}.attn.{short}", DENSE)
        ),
        *norm(f"{blocks}.ln2", f"{ours}.mlp_norm"),
        *named(f"{blocks}.mlp.0", f"{ours}.mlp.up", DENSE),
        *named(f"{blocks}.mlp.2", f"{ours}.mlp.down", DENSE),
        *norm(f"{a}.ln_f", f"{b}.norm"),
        *named(f"{a}.off_head", f"{b}.head", DENSE),
    )


def table(config: SynchformerConfig) -> Table:
    """Return the table of all parts; `config` gives the sizes of a patch of video."""
    patch = config.video.patch
    return Table(
        rows=(*_video(), *_audio(), *_sync()),
        ignore=(
            Ignore(
                "vfeat_extractor.patch_embed.proj.*", "a patch embedding of images, never applied"
            ),
        ),
        sizes={"p": config.video.patch_frames, "q": patch, "r": patch},
    )


def read(request: Request) -> Read:
    """Read all parts from one file, in the released sizes unless the user gives others."""
    config = own_config(request, SynchformerConfig) or SynchformerConfig.released()
    layout = table(config)
    weights = request.weights(layout.knows)
    licence = own_licence(request, licences.SYNCHFORMER)
    return Read([Incoming("synchformer", config, layout, weights.tensors, weights.files, licence)])


MODEL = Model(
    read,
    write_own("synchformer", table),
)
