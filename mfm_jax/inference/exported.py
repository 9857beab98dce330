"""Programs beside a bundle: `mfm bundle compile` writes them, and generation uses those that fit.

programs/
  5f0c.../                  the programs for one machine, one bundle and one choice of settings
    for.json                these, in words
    encode_cavp-....program
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle
from mfm_jax.errors import first_line
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.inference.programs import Program, generation, text_encoder
from mfm_jax.inference.prompts import LENGTH
from mfm_jax.runtime import executables
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs, program_name
from mfm_jax.runtime.executables import ExecutableError, environment
from mfm_jax.runtime.sharding import Layout
from mfm_jax.storage.files import new_folder

FOLDER = "programs"
SUFFIX = ".program"
FOR = "for.json"
LARGEST = 1 << 16
"""Bytes of the largest `for.json` that is read."""


@dataclass(frozen=True)
class Exports:
    """The programs beside a bundle for this machine and one choice of settings."""

    bundle: Bundle
    layout: Layout
    batch: int  # windows
    precision: DTypeLike
    sampling: Sampling

    def purpose(self) -> dict[str, str]:
        """Return everything that the programs depend on, in words."""
        return environment(self._devices()) | {
            "bundle": self.bundle.identity,
            "batch": str(self.batch),
            "mesh": str(dict(self.layout.mesh.shape)),
            "precision": str(jnp.dtype(self.precision)),
            "sampling": repr(self.sampling),
        }

    def write(self, say: Callable[[str], object] = print) -> Path:
        """Compile, seal and write the programs, and try each once; return their folder.

        Raises:
            BundleError: a network is missing.
            ExecutableError: they cannot be serialized here, or do other than before.
            WriteError: they cannot be written.
        """
        purpose, key = self.purpose(), executables.make_key()
        target = self.bundle.path / FOLDER / executables.purpose_name(purpose)
        with new_folder(target, replace=True) as folder, _without_cache():
            for program in self._programs():
                compiled = program.traced(self.layout).lower().compile()
                leaves = jax.tree.leaves(program.arguments)
                name = program_name(program.function, leaves, program.options)
                file = folder / f"{name}{SUFFIX}"
                executables.save(file, compiled, purpose, key)
                loaded = executables.load(file, purpose, key, self._devices())
                _check_same(program, compiled, loaded)
                say(f"{program.name}: {file.stat().st_size / 1e6:.1f} MB")
            (folder / FOR).write_text(json.dumps(purpose, indent=1) + "\n", encoding="utf-8")
        return target

    def read(self, say: Callable[[str], object]) -> Programs:
        """Load the programs, if there are any that fit; otherwise `say` why not, in one line.

        Nothing is read of a file that is not sealed with this user's key for this very purpose.
        """
        if not has_programs(self.bundle):
            return NO_PROGRAMS
        beside = self.bundle.path / FOLDER
        purpose, key = self.purpose(), executables.read_key()
        folder = beside / executables.purpose_name(purpose)
        try:
            files = sorted(folder.glob(f"*{SUFFIX}"))
            if not files:
                raise ExecutableError(_difference(beside, purpose))
            if key is None:
                raise ExecutableError(f"there is no key {executables.key_file()} to check them")
            with ThreadPoolExecutor() as pool:
                found = pool.map(
                    lambda file: executables.load(file, purpose, key, self._devices()), files
                )
                return Programs(dict(zip((file.stem for file in files), found, strict=True)))
        except (ExecutableError, OSError) as error:
            say(f"the programs in {beside} are not used, so these are compiled: {error}")
            return NO_PROGRAMS

    def _programs(self) -> Iterator[Program]:
        """Yield the programs of generation without prompts, and those that prompts add."""
        how: dict[str, Any] = {"batch": self.batch, "dtype": self.precision}
        how["sampling"] = self.sampling
        yield from generation(self.bundle, self.layout, **how)
        if "t5" in self.bundle.entries and len(self.bundle.config("unet").contexts) > 1:
            yield text_encoder(self.bundle, self.layout, self.precision)
            yield generation(self.bundle, self.layout, **how, tokens=LENGTH)[-1]

    def _devices(self) -> list[jax.Device]:
        return list(self.layout.mesh.devices.flat)


def has_programs(bundle: Bundle) -> bool:
    """Return whether there are programs beside a bundle, whatever they are for."""
    return (bundle.path / FOLDER).is_dir()


@contextmanager
def _without_cache() -> Iterator[None]:
    """Compile anew: what JAX's cache returns cannot be serialized again on every platform.

    What this process has from there is forgotten, too.
    """
    jax.clear_caches()
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting when it compiles for the first time
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _check_same(program: Program, compiled: Callable[..., Any], loaded: Callable[..., Any]) -> None:
    """Check that a program does the same once it is loaded.

    Raises:
        ExecutableError: it fails, or does not.
    """
    arguments = jax.tree.map(_some, program.arguments)
    try:
        made, again = (jax.device_get(call(*arguments)) for call in (compiled, loaded))
    except Exception as error:
        raise ExecutableError(
            f"{program.name} does not run once it is loaded ({first_line(error)})"
        ) from None
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(again), strict=True):
        if one.tobytes() != other.tobytes():
            raise ExecutableError(f"{program.name} makes other values once it is loaded")


def _some(shape: Any) -> jax.Array:
    """Return an array of a shape, with small values that are not all alike."""
    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), shape.shape)
        return jax.device_put(keys, shape.sharding)
    values = np.resize(np.linspace(-0.1, 0.1, 61), shape.shape)
    some = values if jnp.issubdtype(shape.dtype, jnp.floating) else values > 0
    return jax.device_put(some.astype(shape.dtype), shape.sharding)


def _difference(beside: Path, purpose: Mapping[str, str]) -> str:
    """Return in what those that are there differ from what is wanted."""
    found: list[list[str]] = []
    for file in beside.glob(f"*/{FOR}"):
        with suppress(OSError, ValueError, AttributeError):
            if file.stat().st_size <= LARGEST:
                told = json.loads(file.read_text("utf-8"))
                found.append([name for name, value in purpose.items() if told.get(name) != value])
    if not found:
        return "there are none"
    nearest = min(found, key=len)
    return f"they are for another {', another '.join(nearest)}" if nearest else "they are damaged"
