"""Compiled programs are kept between processes, in one folder of the user; nothing breaks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = """
from mfm_jax.runtime.programs import keep_programs, programs_folder
{before}
keep_programs()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **how: hits.append(event))
jax.jit(lambda x: jnp.linalg.norm(jnp.sin(x) @ x))(jnp.ones((64, 64)))
print(sum("cache_hits" in event for event in hits), jax.config.jax_compilation_cache_dir)
"""


def compiled(home: Path, before: str = "", **variables: str) -> tuple[int, str]:
    """Compile something in a process of its own; return the programs found, and the folder."""
    ours = ("JAX_COMPILATION", "JAX_PERSISTENT", "XDG", "MFM")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE.format(before=before)],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**others, "HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
             "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", **variables},
    )  # fmt: skip
    hits, folder = done.stdout.split(maxsplit=1)
    return int(hits), folder.strip()


def test_a_second_process_finds_what_the_first_compiled_and_repairs_what_a_killed_one_left(
    tmp_path,
):
    hits, folder = compiled(tmp_path)
    assert hits == 0
    assert Path(folder).parent == tmp_path / ".cache/mfm-jax/programs"
    entries = sorted(Path(folder).glob("*-cache"))
    assert entries
    assert compiled(tmp_path, before="import jax")[0] == len(entries)  # as in `python train.py`
    entries[0].write_bytes(b"half")
    entries[0].with_name(entries[0].name.replace("-cache", "-atime")).unlink()
    assert compiled(tmp_path)[0] == len(entries) - 1
    assert compiled(tmp_path)[0] == len(entries)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "{home}/mine"}, "{home}/mine"),
        ({"MFM_PROGRAMS": "/dev/null/x"}, "None"),
        ({"MFM_PROGRAMS": "~/other"}, "{home}/other/"),
        ({"XDG_CACHE_HOME": "{home}/xdg"}, "{home}/xdg/mfm-jax/programs/"),
    ],
)
def test_the_folder_is_the_users_choice(tmp_path, variables, folder):
    given = {name: value.format(home=tmp_path) for name, value in variables.items()}
    assert compiled(tmp_path, **given)[1].startswith(folder.format(home=tmp_path))
