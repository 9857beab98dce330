"""Executables on disk: compiled programs, for the devices and the code that they were compiled for.

Loading an executable runs machine code, and JAX keeps it in a pickle. So a file is read only if it
was sealed (HMAC-SHA256) with the key of this user; what comes with a bundle of strangers is not.
The seal covers what the program was compiled for, too: in another place it does not hold.
"""

import hashlib
import hmac
import json
import os
import pickle
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from mfm_jax.errors import UserError, system_reason
from mfm_jax.runtime.programs import instructions
from mfm_jax.runtime.versions import version_of

KEY = "MFM_PROGRAMS_KEY"
"""The environment variable that names another file for the key."""

LIBRARIES = ("jax", "jaxlib", "flax", "einops", "numpy", "mfm-jax")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
ELSEWHERE = (
    "cache", "debug_log", "logging", "log_", "dump", "profil", "pgle", "traceback", "platform",
    "timeout", "transfer", "transport", "pprint", "source", "share_binary", "distributed",
)  # fmt: skip
"""Parts of names of JAX's settings that change no program."""

Purpose = Mapping[str, str]
"""What a program was compiled for."""


@dataclass(frozen=True)
class Executable:
    """A loaded program."""

    program: jax.stages.Compiled

    def __call__(self, *arguments: Any) -> Any:
        """Call it with the arguments of its function, without the static ones."""
        return self.program(*jax.tree.leaves(arguments))

    def memory_analysis(self) -> Any:
        """Return what the compiler said of its memory."""
        return self.program.memory_analysis()


class ExecutableError(UserError):
    """An executable that cannot be used or written; the message says why."""


def environment(devices: list[jax.Device]) -> dict[str, str]:
    """Return what programs for `devices` depend on, apart from their own arguments."""
    settings = {
        name: str(value)
        for name, value in jax.config.values.items()
        if not any(part in name for part in ELSEWHERE)
    }
    client = devices[0].client
    return {
        "versions of the libraries": " ".join(f"{name} {version_of(name)}" for name in LIBRARIES),
        "code of mfm_jax": code_digest(),
        "platform": f"{client.platform} {client.platform_version}",
        "devices": f"{len(devices)} of {sorted({device.device_kind for device in devices})}",
        "processor": _digest(*instructions()) if client.platform == "cpu" else "",
        "settings of JAX": _digest(json.dumps(settings, sort_keys=True)),
        "flags of XLA": " ".join(os.environ.get(name, "") for name in VARIABLES),
    }


def code_digest() -> str:
    """Return the SHA-256 of all source files of the package."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    return _digest(*(f"{file.relative_to(root)}\n{file.read_text('utf-8')}" for file in files))


def key_file() -> Path:
    """Return the file of the user's key."""
    if named := os.environ.get(KEY):
        return Path(named).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "mfm-jax" / "programs.key"


def read_key() -> bytes | None:
    """Return the user's key, or None if there is none that can be read."""
    try:
        key = key_file().read_bytes()
    except OSError:
        return None
    return key if len(key) >= 32 else None


def make_key() -> bytes:
    """Return the user's key, which is made if there is none.

    Raises:
        ExecutableError: it cannot be written, or is not a key.
    """
    file = key_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    except OSError as error:
        raise ExecutableError(f"cannot write the key {file} ({system_reason(error)})") from None
    key = read_key()
    if key is None:
        raise ExecutableError(f"{file} is no key of 32 bytes or more: remove it, or set {KEY}")
    return key


def save(file: Path, compiled: jax.stages.Compiled, purpose: Purpose, key: bytes) -> None:
    """Write a compiled program, sealed. It must not come from JAX's cache, or it is not all there.

    Raises:
        ExecutableError: the platform cannot serialize programs.
    """
    try:
        payload, tree, out_tree = serialize_executable.serialize(compiled)
    except Exception as error:  # of many types, by platform
        raise ExecutableError(
            f"programs for {jax.default_backend()} cannot be serialized ({error})"
        ) from None
    body = pickle.dumps((payload, tree.num_leaves, out_tree))
    file.write_bytes(_seal(body, file.stem, purpose, key) + body)


def load(file: Path, purpose: Purpose, key: bytes, devices: list[jax.Device]) -> Executable:
    """Return a program that `save` wrote.

    Raises:
        ExecutableError: it is not sealed with this key for this purpose, or cannot be loaded.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ExecutableError(f"{file} cannot be read ({system_reason(error)})") from None
    seal, body = data[:32], data[32:]
    if not hmac.compare_digest(seal, _seal(body, file.stem, purpose, key)):
        raise ExecutableError(f"{file.name} is not sealed with the key {key_file()}")
    try:
        payload, leaves, out_tree = pickle.loads(body)
        tree = jax.tree.structure((tuple(range(leaves)), {}))
        program = serialize_executable.deserialize_and_load(
            payload, tree, out_tree, devices[0].client, devices
        )
    except Exception as error:  # of many types, by platform
        raise ExecutableError(f"{file.name} cannot be loaded ({error})") from None
    return Executable(program)


def purpose_name(purpose: Purpose) -> str:
    """Return a name for a folder of programs of one purpose."""
    return _digest(json.dumps(dict(purpose), sort_keys=True))[:16]


def _seal(body: bytes, name: str, purpose: Purpose, key: bytes) -> bytes:
    told = json.dumps([name, dict(purpose)], sort_keys=True).encode()
    message = len(told).to_bytes(8, "big") + told + body
    return hmac.new(key, message, hashlib.sha256).digest()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
