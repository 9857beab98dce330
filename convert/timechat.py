"""Convert TimeChat's visual branch.

The released weights are in three files: the ViT's, InstructBLIP's Q-Former and TimeChat's own. In
this order, later ones replace earlier ones; the table reads their union under TimeChat's names.
"""

from dataclasses import replace

import numpy as np

from convert import licences
from convert.incoming import Incoming, with_prefix
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import DENSE, QKV, named, norm
from convert.table import Ignore, Row, Shape, Table
from convert.tensors import SourceError, Tensor
from mfm_jax.models.timechat import TimeChatConfig
from mfm_jax.text.wordpiece import Vocabulary, timestamp_vocabulary
from mfm_jax.typing import Float

VIT = "visual_encoder."
"""TimeChat's prefix for the vision transformer, whose own file has none."""
FRAMES = "video_frame_position_embedding.weight"
UNUSED = ("blocks.39", "norm", "fc_norm", "head")
"""Parts of EVA's own file behind the last block that TimeChat builds (eva_vit.py:415-430)."""


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of BERT's attention with its output map and norm."""
    names = (("self.query", "q"), ("self.key", "k"), ("self.value", "v"), ("output.dense", "o"))
    rows = (row for t, o in names for row in named(f"{theirs}.{t}", f"{ours}.attn.{o}", DENSE))
    return (*rows, *norm(f"{theirs}.output.LayerNorm", f"{ours}.norm"))


def _mlp(theirs: str, ours: str, suffix: str = "") -> tuple[Row, ...]:
    """Return the rows of BERT's feed-forward network with its norm."""
    return (
        *named(f"{theirs}.intermediate{suffix}.dense", f"{ours}.mlp.up", DENSE),
        *named(f"{theirs}.output{suffix}.dense", f"{ours}.mlp.down", DENSE),
        *norm(f"{theirs}.output{suffix}.LayerNorm", f"{ours}.norm"),
    )


def vit_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of EVA's ViT under the prefixes `theirs` and `ours`, which end in a dot."""
    block, attn, to = f"{theirs}blocks.*", f"{theirs}blocks.*.attn", f"{ours}blocks.*"
    qkv = (f"{to}.attn.q.kernel", f"{to}.attn.k.kernel", f"{to}.attn.v.kernel")
    return (
        Row(f"{theirs}cls_token", f"{ours}class_token", "1 1 d -> d"),
        Row(f"{theirs}pos_embed", f"{ours}positions", "1 l d -> l d"),
        Row(f"{theirs}patch_embed.proj.weight", f"{ours}patch.kernel", "d c h w -> h w c d"),
        Row(f"{theirs}patch_embed.proj.bias", f"{ours}patch.bias"),
        *norm(f"{block}.norm1", f"{to}.attn_norm"),
        Row(f"{attn}.qkv.weight", qkv, QKV[0]),
        Row(f"{attn}.q_bias", f"{to}.attn.q.bias"),
        Row(f"{attn}.v_bias", f"{to}.attn.v.bias"),
        *named(f"{attn}.proj", f"{to}.attn.o", DENSE),
        *norm(f"{block}.norm2", f"{to}.mlp_norm"),
        *named(f"{block}.mlp.fc1", f"{to}.mlp.up", DENSE),
        *named(f"{block}.mlp.fc2", f"{to}.mlp.down", DENSE),
    )


def qformer_rows(queries: str, theirs: str, ours: str, *, text: bool) -> tuple[Row, ...]:
    """Return the rows of a Q-Former under two prefixes; its `queries` have a separate name."""
    layer, block = f"{theirs}encoder.layer.*", f"{ours}blocks.*"
    rows = (
        Row(queries, f"{ours}queries", "1 q d -> q d"),
        *norm(f"{theirs}embeddings.LayerNorm", f"{ours}norm"),
        *_attention(f"{layer}.attention", f"{block}.joint"),
        *_attention(f"{layer}.crossattention", f"{block}.cross"),
        *_mlp(layer, f"{block}.query_mlp", "_query"),
    )
    if not text:
        return rows
    words, positions = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
    return (
        *rows,
        *_mlp(layer, f"{block}.text_mlp"),
        Row(f"{theirs}{words}", f"{ours}text.words.embedding"),
        Row(f"{theirs}{positions}", f"{ours}text.positions"),
    )


def _counted(key: str, shape: Shape) -> np.ndarray:
    """Return the positions of words: 0, 1, 2, ..."""
    return np.arange(shape[-1] if shape else 1)[None]


def table(config: TimeChatConfig) -> Table:
    """Return the table of the branch; `config` says which optional parts it has."""
    text = config.image_qformer.words is not None
    return Table(
        rows=(
            *vit_rows(VIT, "vit."),
            *norm("ln_vision", "vit_norm"),
            *qformer_rows("query_tokens", "Qformer.bert.", "image_qformer.", text=text),
            Row(FRAMES, "frame_positions"),
            *qformer_rows(
                "video_query_tokens", "video_Qformer.bert.", "video_qformer.", text=False
            ),
            *(named("llama_proj", "llama", DENSE) if config.llama_width else ()),
        ),
        ignore=(
            Ignore("*Qformer.bert.embeddings.position_ids", "not a weight", value=_counted),
            *(Ignore(f"{VIT}{part}.*", "TimeChat reads what comes before") for part in UNUSED),
            Ignore("Qformer.cls.*", "InstructBLIP's head for words", foreign=True),
            Ignore("llm_proj.*", "InstructBLIP's way into its language model", foreign=True),
            Ignore("llama_model.*", "TimeChat's language model", foreign=True),
        ),
    )


def resize_frame_positions(
    positions: Float[np.ndarray, "T D"], frames: int
) -> Float[np.ndarray, "{frames} D"]:
    """Return the table for another number of frames, by nearest neighbour.

    Source: TimeChat, video_processor.py:26-33.
    """
    return positions[np.arange(frames) * len(positions) // frames]


def read(request: Request) -> Read:
    """Read the union of the files, in the order in which TimeChat loads them."""
    config = own_config(request, TimeChatConfig)
    if config is None:
        config = TimeChatConfig.timechat_7b(_vocabulary(request))
    layout = table(config)

    def known(key: str) -> bool:
        return layout.knows(key) or layout.knows(VIT + key)

    files = [request.open(source, known) for source in request.sources]
    files.sort(key=lambda weights: _turn(weights.tensors))
    tensors: dict[str, Tensor] = {}
    for weights in files:
        alone = "patch_embed.proj.weight" in weights.tensors
        tensors |= with_prefix(weights.tensors, VIT) if alone else weights.tensors
    if FRAMES in tensors and tensors[FRAMES].shape:
        config = replace(config, frames=tensors[FRAMES].shape[0])
    paths = tuple(path for weights in files for path in weights.files)
    licence = own_licence(request, licences.TIMECHAT)
    return Read([Incoming("timechat", config, layout, tensors, paths, licence)])


def _turn(keys) -> int:
    """Return the order of a file: the ViT's, InstructBLIP's, TimeChat's own."""
    return 0 if "patch_embed.proj.weight" in keys else 2 if FRAMES in keys else 1


def _vocabulary(request: Request) -> Vocabulary:
    folders = [s if s.is_dir() else s.parent for s in request.sources]
    beside = (path for folder in folders if (path := folder / "vocab.txt").is_file())
    file = request.vocabulary or next(beside, None)
    if file is None:
        raise SourceError(
            "TimeChat writes times in the words of bert-base-uncased: give its vocab.txt with "
            "--vocabulary"
        )
    try:
        return timestamp_vocabulary(file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: {error}") from None


MODEL = Model(
    read,
    write_own("timechat", table),
)
