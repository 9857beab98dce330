"""Networks of ours with random weights, and the folders that transformers and diffusers open."""

import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
from safetensors.numpy import save_file

from mfm_jax.storage.weights import abstract, named_weights, with_weights


def random_network(build, config, seed: int = 0):
    """Return `build(config)` and its weights by name, none at its initial value."""
    network = abstract(partial(build, config))
    rng = np.random.default_rng(seed)
    weights = {}
    for name, leaf in named_weights(network).items():
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:
            weights[name] = np.float32(name.endswith("scale")) + 0.3 * noise
        else:
            weights[name] = noise / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
    return with_weights(network, {n: jax.device_put(a) for n, a in weights.items()}), weights


def open_exported(
    kind, folder: Path, config: dict, weights: Iterable[tuple[str, np.ndarray]], caplog
) -> torch.nn.Module:
    """Write a folder as an export does and let `kind` of transformers or diffusers open it.

    Every tensor is found, none is left over, and the library gives no warning.
    """
    folder.mkdir()
    state = dict(weights)
    library = kind.__module__.split(".")[0]
    if library == "transformers":
        name, options = "model.safetensors", {}
    else:
        # Otherwise it warns that a package is missing which would save memory.
        name, options = "diffusion_pytorch_model.safetensors", {"low_cpu_mem_usage": False}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / name, {"format": "pt"})
    logger = logging.getLogger(library)
    logger.addHandler(caplog.handler)
    try:
        network, found = kind.from_pretrained(folder, output_loading_info=True, **options)
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(found.values()), found
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    network.load_state_dict({k: torch.from_numpy(a) for k, a in state.items()}, strict=True)
    return network.eval()
