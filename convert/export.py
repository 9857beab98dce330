"""Write all of a bundle that other libraries load, one folder for each model."""

from collections.abc import Callable
from pathlib import Path

from convert import audioldm2
from convert.command import find_model
from convert.outgoing import Outgoing, to_torch
from convert.table import ConversionError
from mfm_jax.bundle import Bundle
from mfm_jax.bundle.card import Exports

SINGLE = ("cavp", "timechat", "audiomae", "gpt2", "cnn14", "synchformer", "mapper")
"""Models of one component, each with its name."""


def export(
    bundle: Bundle, folder: Path, progress: Callable[[int], None] = lambda size: None
) -> Exports:
    """Write the components that some library can load into the new folder.

    Raises:
        StoreError: weights cannot be read, or have changed since they were written.
    """
    writers = {
        name: lambda name=name: find_model(name).write(bundle)[0]
        for name in SINGLE
        if name in bundle.entries
    }
    models: dict[str, list[Outgoing]] = {}
    folders, refused = {}, {}
    for component, write in (writers | audioldm2.writers(bundle)).items():
        model = component if component in SINGLE else "audioldm2"
        try:
            part = write()
        except ConversionError as error:
            refused[component] = str(error)
            continue
        models.setdefault(model, []).append(part)
        folders[component] = f"{folder.name}/{model}"
    for model, parts in models.items():
        to_torch(bundle, parts, folder / model, progress)
    return Exports(folders, refused)
