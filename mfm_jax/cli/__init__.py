"""The `mfm` command."""

from collections.abc import Sequence

from mfm_jax.runtime import signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; by default the one of this process."""
    if arguments is None:
        signals.catch("mfm")  # before the imports, which take time
    from mfm_jax.cli import command

    return command.main(arguments)
