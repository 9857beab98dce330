"""Convert AudioLDM2's GPT-2 with its input layers: a `GPT2Mapper`, `wrapped` fusion, no head.

It maps text to LOA: it reads CLAP's vector and T5's states, each between two learned vectors.
AudioLDM2's own checkpoint calls it `sequence_gen`, diffusers `language_model` and
`projection_model`.
"""

from collections.abc import Mapping

from convert.configs import builtin, one_of, required
from convert.gpt2 import rows, words
from convert.rows import DENSE, named
from convert.table import ConversionError, Row, Rows, Table
from mfm_jax.mapper import MapperConfig
from mfm_jax.mapper.fusion import ROWS
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2Config

LANGUAGE, PROJECTION = "language_model.", "projection_model."
"""Our prefixes for the tensors of diffusers' two parts."""
CLAP, T5 = ("clap", 1), ("t5", 128)
"""The conditions and their largest number of tokens."""
# The pooling of LOA by the number of generated tokens, which the released models state.
POOLS = {8: (8, 8), 512: (1, 1)}


def table(config: MapperConfig) -> Table:
    """Return the table for AudioLDM2's own checkpoint."""
    linears = [
        row
        for i, name in enumerate(config.widths)
        for row in named(f"input_sequence_embed_linear.{i}", f"fusion.proj.{name}", DENSE)
    ]
    return Table(
        (
            Row("start_of_sequence_tokens.weight", "fusion.start"),
            Row("end_of_sequence_tokens.weight", "fusion.end"),
            *linears,
            *rows("model.", "gpt2."),
            words("model.", "gpt2.", config.gpt2.width),
        )
    )


def diffusers_table(config: MapperConfig) -> Table:
    """Return the table for diffusers' files, with the folder's name before each part's names."""
    first, second = config.widths
    vectors = {"start": "sos_embed", "end": "eos_embed"}
    return Table(
        (
            *(
                Rows((f"{PROJECTION}{v}", f"{PROJECTION}{v}_1"), f"fusion.{name}", ROWS)
                for name, v in vectors.items()
            ),
            *named(f"{PROJECTION}projection", f"fusion.proj.{first}", DENSE),
            *named(f"{PROJECTION}projection_1", f"fusion.proj.{second}", DENSE),
            *rows(LANGUAGE, "gpt2."),
            words(LANGUAGE, "gpt2.", config.gpt2.width),
        )
    )


def config(projection: Mapping, language: Mapping, gpt2: GPT2Config) -> MapperConfig:
    """Return the configuration in the `config.json` of both parts; `gpt2` is the language model's.

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    what = "projection_model config"
    # diffusers spells the last one so.
    names = ("text_encoder_dim", "text_encoder_1_dim", "langauge_model_dim")
    required(projection, names, what)
    builtin(projection, {"use_learned_position_embedding": None, "max_seq_length": None}, what)
    clap, t5, width = (projection[name] for name in names)
    pool = one_of(language, "max_new_tokens", POOLS, "language_model config")
    if width != gpt2.width:
        raise ConversionError(f"{what}: langauge_model_dim {width} is not GPT-2's {gpt2.width}")
    return MapperConfig(
        encoders=((*CLAP, clap), (*T5, t5)),
        loa_width=width,
        loa=LOA(pool=pool),
        fusion="wrapped",
        gpt2=gpt2,
    )


def their_config(ours: MapperConfig) -> dict:
    """Return the `config.json` of the projection model."""
    (_, _, clap), (_, _, t5) = ours.encoders
    return {
        "_class_name": "AudioLDM2ProjectionModel",
        "text_encoder_dim": clap,
        "text_encoder_1_dim": t5,
        "langauge_model_dim": ours.gpt2.width,
        "use_learned_position_embedding": None,
        "max_seq_length": None,
    }
