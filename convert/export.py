"""Write all of a bundle that other libraries load, one folder for each model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from convert import audioldm2
from convert.command import find_model
from convert.outgoing import Outgoing, to_torch
from convert.table import ConversionError
from mfm_jax.bundle import Bundle
from mfm_jax.bundle.card import Exports

SINGLE = (
    "cavp", "timechat", "audiomae", "gpt2", "cnn14", "synchformer", "mapper", "adapter",
)  # fmt: skip
"""Models of one folder, each with the name of its component, or of the first one."""


def export(
    bundle: Bundle, folder: Path, progress: Callable[[int], None] = lambda size: None
) -> Exports:
    """Write the components that some library can load into the new folder.

    Raises:
        StoreError: weights cannot be read, or have changed since they were written.
    """
    writers: dict[str, Callable[[], list[Outgoing]]] = {
        name: partial(find_model(name).write, bundle) for name in SINGLE if name in bundle.entries
    }
    for name, write_one in audioldm2.writers(bundle).items():
        writers[name] = partial(_several, write_one)
    models: dict[str, list[Outgoing]] = {}
    folders: dict[str, str] = {}
    refused: dict[str, str] = {}
    for component, write in writers.items():
        model = component if component in SINGLE else "audioldm2"
        try:
            parts = write()
        except ConversionError as error:
            refused[component] = str(error)
            continue
        models.setdefault(model, []).extend(parts)
        folders |= {part.component: f"{folder.name}/{model}" for part in parts}
    for model, parts in models.items():
        to_torch(bundle, parts, folder / model, progress)
    return Exports(folders, refused)


def _several(write: Callable[[], Outgoing]) -> list[Outgoing]:
    return [write()]
