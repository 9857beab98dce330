"""Which part of the work is a process's, and settings that contradict each other."""

import pytest

from mfm_jax.errors import SettingError
from mfm_jax.runtime.distributed import Processes, share, start


def test_one_process_has_all_of_the_work_and_connects_to_nobody():
    start(Processes())
    assert share(Processes()) == (0, 1)


def test_a_share_needs_no_connection():
    assert share(Processes(count=3, index=2)) == (2, 3)


@pytest.mark.parametrize(
    "processes", [Processes(count=2), Processes(index=1), Processes(count=2, index=2)]
)
def test_a_share_without_its_whole_is_refused(processes):
    with pytest.raises(SettingError, match="--processes N and --process I go together"):
        share(processes)


def test_a_connection_needs_all_three():
    with pytest.raises(SettingError, match="give all three"):
        start(Processes(coordinator="localhost:1", count=2))
