"""Convert AudioLDM 2 as diffusers saves it: a folder with one folder per network."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from convert import gpt2, licences, scheduler, sequence, t5, unet, vae, vocoder
from convert.incoming import Derived, Incoming, Reading, with_prefix
from convert.model import CONFIG, DIFFUSERS_WEIGHTS, WEIGHTS, Model, Read, Request
from convert.outgoing import Outgoing
from convert.source import Weights, read_json
from convert.table import ConversionError, Table
from convert.tensors import Tensor
from mfm_jax.bundle import Bundle
from mfm_jax.models.text import EmptyTextConfig

SCHEDULER = "scheduler_config.json"
Parts = list[Incoming | Derived]


def read(request: Request) -> Read:
    """Read all networks but CLAP, and the schedule.

    Raises:
        ConversionError: `request.only` names an unknown network.
    """
    folder = request.folder()
    readers: dict[str, Callable[[], Parts]] = {
        "unet": lambda: [_one("unet", folder, unet.config, lambda config: unet.TABLE, request)],
        "vae": lambda: [_one("vae", folder, vae.config, lambda config: vae.TABLE, request)],
        "vocoder": lambda: [_one("vocoder", folder, vocoder.config, vocoder.table, request)],
        "t5": lambda: _texts(folder, request),
        "sequence": lambda: [_sequence(folder, request)],
    }
    if unknown := sorted(set(request.only) - readers.keys()):
        raise ConversionError(f"--only is of {', '.join(readers)}, not {unknown[0]!r}")
    parts = [p for name in readers if name in (request.only or readers) for p in readers[name]()]
    schedule = scheduler.config(read_json(folder / "scheduler", SCHEDULER))
    return Read(parts, schedule)


def _one(
    name: str, top: Path, config: Callable, table: Callable[..., Table], request: Request
) -> Incoming:
    """Read a network from the folder of its name."""
    folder = top / name
    ours = config(read_json(folder, CONFIG))
    layout = table(ours)
    spelling = vae.spelling if name == "vae" else str
    # Where diffusers' training scripts save averages.
    averages = top / f"{name}_ema"
    weights = request.open(folder, lambda key: layout.knows(spelling(key)), averages_in=averages)
    tensors = vae.spelled(weights.tensors) if name == "vae" else weights.tensors
    files = (folder / CONFIG, *weights.files)
    licence = request.licence or licences.AUDIOLDM2
    return Incoming(name, ours, layout, tensors, files, licence)


def _texts(top: Path, request: Request) -> Parts:
    """Read T5, and compute its states for the empty text, which suffice without prompts."""
    part = t5.incoming(top / "text_encoder_2", top / "tokenizer_2", request, licences.FLAN_T5)

    def states() -> Iterator[tuple[str, np.ndarray]]:
        yield "states", t5.no_text(Reading(part.tensors), part.config)

    config = EmptyTextConfig(width=part.config.width)
    return [part, Derived("text", config, states, (part,))]


def _sequence(top: Path, request: Request) -> Incoming:
    """Read GPT-2 and the projections before it, each from its folder."""
    said = read_json(top / "language_model", CONFIG)
    projection = read_json(top / "projection_model", CONFIG)
    ours = sequence.config(projection, said, gpt2.config(said))
    layout = sequence.diffusers_table(ours)
    parts: dict[str, Callable[[Path], Weights]] = {
        sequence.LANGUAGE: lambda folder: gpt2.open_trunk(folder, request),
        sequence.PROJECTION: lambda folder: request.open(
            folder, lambda key: layout.knows(sequence.PROJECTION + key)
        ),
    }
    tensors: dict[str, Tensor] = {}
    files: tuple[Path, ...] = ()
    for prefix in parts:
        folder = top / prefix.removesuffix(".")
        weights = parts[prefix](folder)
        tensors |= with_prefix(weights.tensors, prefix)
        files += (folder / CONFIG, *weights.files)
    licence = request.licence or licences.AUDIOLDM2
    return Incoming("sequence", ours, layout, tensors, files, licence)


def write(bundle: Bundle) -> list[Outgoing]:
    """Return the files of the networks that the bundle has, in diffusers' folders."""
    return [writer() for writer in writers(bundle).values()]


def writers(bundle: Bundle) -> dict[str, Callable[[], Outgoing]]:
    """Return what tells the files of each network that the bundle has."""
    all_of_them: dict[str, Callable[[], Outgoing]] = {
        "unet": partial(_unet_out, bundle),
        "vae": lambda: Outgoing(
            "vae",
            vae.TABLE,
            {f"vae/{CONFIG}": vae.their_config(bundle.config("vae"))},
            {"": f"vae/{DIFFUSERS_WEIGHTS}"},
        ),
        "vocoder": lambda: Outgoing(
            "vocoder",
            vocoder.table(bundle.config("vocoder")),
            {f"vocoder/{CONFIG}": vocoder.their_config(bundle.config("vocoder"))},
            {"": f"vocoder/{WEIGHTS}"},
        ),
        "t5": partial(t5.outgoing, bundle, "text_encoder_2/", "tokenizer_2"),
        "sequence": partial(_sequence_out, bundle),
    }
    return {name: writer for name, writer in all_of_them.items() if name in bundle.entries}


def _unet_out(bundle: Bundle) -> Outgoing:
    described = unet.their_config(bundle.config("unet"))
    if "vae" in bundle.entries:
        # diffusers takes the length of its output from here.
        described["sample_size"] = bundle.settings.frames // bundle.config("vae").compression
    schedule = scheduler.their_config(bundle.settings.schedule)
    configs = {f"unet/{CONFIG}": described, f"scheduler/{SCHEDULER}": schedule}
    return Outgoing("unet", unet.TABLE, configs, {"": f"unet/{DIFFUSERS_WEIGHTS}"})


def _sequence_out(bundle: Bundle) -> Outgoing:
    ours = bundle.config("sequence")
    words = gpt2.word_count(bundle, "sequence", f"{sequence.LANGUAGE}wte.weight")
    language = gpt2.their_config(ours.gpt2, words) | {"max_new_tokens": ours.loa.tokens}
    return Outgoing(
        "sequence",
        sequence.diffusers_table(ours),
        {
            f"language_model/{CONFIG}": language,
            f"projection_model/{CONFIG}": sequence.their_config(ours),
        },
        {
            sequence.LANGUAGE: f"language_model/{WEIGHTS}",
            sequence.PROJECTION: f"projection_model/{DIFFUSERS_WEIGHTS}",
        },
    )


MODEL = Model(
    read,
    write,
    (
        "unet/*",
        "vae/*",
        "vocoder/*",
        "scheduler/*",
        "text_encoder_2/*",
        "tokenizer_2/*",
        "language_model/*",
        "projection_model/*",
    ),
)
