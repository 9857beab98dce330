"""Several processes of one program: how they connect, and which of them prints."""

from dataclasses import dataclass

from mfm_jax.errors import SettingError, first_line


@dataclass(frozen=True)
class Processes:
    """The way the processes of a run find each other. By default there is only one."""

    detect: bool = False  # ask the TPU pod, Slurm or Open MPI
    coordinator: str | None = None  # host:port of process 0
    count: int | None = None
    index: int | None = None  # of this process, from 0


def start(processes: Processes) -> None:
    """Connect to the other processes, if there are any. Call it before anything uses a device.

    Raises:
        SettingError: the settings contradict each other, or the other processes are not found.
    """
    named = (processes.coordinator, processes.count, processes.index)
    if not processes.detect and all(value is None for value in named):
        return
    import jax

    if not processes.detect and any(value is None for value in named):
        raise SettingError(
            "--coordinator, --processes and --process go together: give all three, or "
            "--distributed where the machine knows them"
        )
    try:
        jax.distributed.initialize(*named)
    except (RuntimeError, ValueError) as error:
        raise SettingError(f"the other processes are not found ({first_line(error)})") from None


def share(processes: Processes) -> tuple[int, int]:
    """Return `(index, count)` for work that is divided without communication.

    Processes that do such work need not connect, so `index` and `count` are enough to name them.

    Raises:
        SettingError: the settings contradict each other, or the other processes are not found.
    """
    if processes.detect or processes.coordinator is not None:
        import jax

        start(processes)
        return jax.process_index(), jax.process_count()
    index, count = processes.index or 0, processes.count or 1
    if (processes.index is None) != (processes.count is None) or not 0 <= index < count:
        raise SettingError("--processes N and --process I go together, and I is from 0 to N - 1")
    return index, count


def say(text: str) -> None:
    """Print a line, once for all processes of a run."""
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)
