"""Strict settings for every test, and the parity table printed at the end of a run."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the suite's time would go into optimising code that runs once, and the newer emitters of
# fusions take twice the older ones' time to compile. Workers share the cores already, so that to
# compile in several threads only costs. JAX stops at a flag that it does not know, and jaxlib 0.12
# has no older emitters.
os.environ.setdefault(
    "XLA_FLAGS",
    ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1",
)
# In the environment, so that processes that tests start compile the same programs, and find them.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Threads of PyTorch and of BLAS that wait for work keep a core busy, which another worker needs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import atexit
import ctypes
import gc
import json
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.lru_cache import LRUCache
from jax.experimental.compilation_cache import compilation_cache

from mfm_jax.media.sandbox import SWITCH
from tests.annotations import check_faster
from tests.store_server import new_bucket, running_server

check_faster()
# Orbax warns of every array that it writes. The commands hide that as well.
logging.getLogger("absl").setLevel(logging.ERROR)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REFERENCE = Path(__file__).parent / "reference"
A_WEEK = 7 * 24 * 3600
LARGE = 5 << 30
"""Bytes of memory from which on a worker gives back what it does not use, or else its programs."""
LONGEST = (
    "train/test_mesh.py",
    "test_journey.py",
    "train/test_own_clips.py",
    "inference/test_ray.py",
    "docs/test_code.py",
    "serve/test_server.py",
    "convert/test_goldens.py",
    "models/test_unet.py",
    "train/test_recipe_stage2.py",
    "train/test_store.py",
    "inference/test_generate_mesh.py",
    "mapper/test_mapper.py",
    "models/test_remat.py",
    "train/test_train.py",
    "cli/test_generate.py",
    "miniature/test_runs.py",
    "inference/test_extract.py",
    "train/test_log.py",
    "models/test_cavp.py",
    "convert/test_mapper.py",
    "models/test_timechat.py",
    "models/test_adapters.py",
    "inference/test_pipeline.py",
    "encoders/test_encoders.py",
    "train/test_recipe_mapper.py",
    "inference/test_exported.py",
    "models/test_audiomae.py",
    "inference/test_extract_many.py",
    "inference/test_staged.py",
    "convert/test_audioldm2.py",
    "convert/test_identity.py",
    "fuzz/test_fuzz.py",
    "foley/test_world.py",
    "convert/test_unet.py",
    "models/test_cnn14.py",
    "models/test_synchformer.py",
    "train/test_recipe_sync.py",
    "inference/test_generate.py",
    "train/test_workdir.py",
    "storage/test_leases.py",
    "inference/test_shares.py",
    "runtime/test_signals.py",
)
"""Files that take longest; they run first, so that all workers end at about the same time."""
VIDEOS = Path(__file__).parents[2] / "shared" / "videos"


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs in pytest's cache, for other tests, workers and later runs."""
    if hasattr(config, "workerinput"):
        # A worker need not give back all programs, traces and modules one by one. What is
        # registered from now on, such as the removal of folders, is done before.
        atexit.register(os._exit, 0)
    if not hasattr(config, "cache"):  # pytest -p no:cacheprovider
        return
    folder = config.cache.mkdir("xla")
    if not hasattr(config, "workerinput"):
        for entry in folder.iterdir():
            if time.time() - entry.stat().st_mtime > A_WEEK:
                entry.unlink()
    # Processes that tests start only read: one that is killed would leave half a program.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1000000"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    LRUCache.put = put_at_once


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the front; `pytest --dist loadfile` hands files out in order."""
    rank = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collectstart() -> None:
    """Import the tests without the garbage collector, which would take a quarter of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, which stays, and let it come less often.

    Traces of networks make so many objects that it would take a twelfth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """Give back memory after a file that leaves gigabytes.

    glibc keeps what is freed. Without `trim`, a worker that has once run networks of full size
    would drop its programs after each file from then on, and free nothing by it.
    """
    yield
    if resident_memory() > LARGE and trim() > LARGE:
        jax.clear_caches()
        gc.collect()
        trim()


@pytest.fixture(autouse=True, scope="module")
def same_program_cache():
    """Give the next file the cache of this one, also where a command has chosen another folder."""
    folder = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.fixture(autouse=True)
def same_sandbox():
    """Decode where the test before did: `mfm serve` and `--sandbox` set this for their process."""
    before = os.environ.get(SWITCH)
    yield
    if before is None:
        os.environ.pop(SWITCH, None)
    else:
        os.environ[SWITCH] = before


def resident_memory() -> int:
    """Return the bytes of memory that this process has; more than it is allowed if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return LARGE + 1
    return pages * os.sysconf("SC_PAGE_SIZE")


def trim() -> int:
    """Return freed memory to the system where the C library can; tell how much is left."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return resident_memory()


def put_at_once(cache: LRUCache, key: str, value: bytes) -> None:
    """Write an entry of JAX's cache. JAX's own `put` lets another worker read half of one."""
    entry = Path(cache.path) / f"{key}-cache"
    if not entry.exists():
        part = entry.with_name(f".{entry.name}.{os.getpid()}")
        part.write_bytes(value)
        part.replace(entry)


@pytest.fixture
def no_program_cache():
    """Compile in this test, whatever was compiled before: for tests of what compiling gives."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def reference() -> Path:
    """Goldens and manifests of the original networks: small copies that live in the repository."""
    return REFERENCE


@pytest.fixture(scope="session")
def videos() -> Path:
    """Real clips, which are not part of the repository."""
    if not VIDEOS.is_dir():
        pytest.skip("needs the real clips, which lie beside the checkout and not in it")
    return VIDEOS


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable:
    """`parity(network, against, ours, theirs, tolerance)`: assert, and add a row to the table.

    The tolerance is absolute. With `relative_to="spread"` it is a share of the standard deviation
    of theirs.
    """

    def check(network, against, ours, theirs, tolerance, *, relative_to=None):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, f"{network}: {ours.shape} against {theirs.shape}"
        assert np.all(np.isfinite(ours)), f"{network}: not finite"
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
        if relative_to == "spread":
            difference /= theirs.std()
        row = [network, against, float(difference), float(tolerance)]
        request.node.user_properties.append(("parity", json.dumps(row)))
        assert difference <= tolerance, f"{network} against {against}: {difference:.2e}"

    return check


def pytest_terminal_summary(terminalreporter) -> None:
    """Print network, compared with what, max abs difference and tolerance, one row a check."""
    rows = [
        json.loads(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", [])
        if name == "parity" and report.when == "call"
    ]
    if not rows:
        return
    terminalreporter.section("parity")
    wide = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    terminalreporter.write_line(
        f"{'network':{wide[0]}}  {'against':{wide[1]}}  {'max diff':>9}  {'tolerance':>9}"
    )
    for network, against, difference, tolerance in sorted(rows):
        terminalreporter.write_line(
            f"{network:{wide[0]}}  {against:{wide[1]}}  {difference:9.1e}  {tolerance:9.1e}"
        )


@pytest.fixture(scope="module")
def open_once():
    """Open a bundle's networks once for all commands of a file: that is half of a small command."""
    # Imported here, when annotations are checked as `check_faster` says.
    from mfm_jax.inference.pipeline import VideoToAudio
    from mfm_jax.storage.paths import TINY_BUNDLE

    opened: dict = {}
    real = VideoToAudio.open

    def open_or_remember(bundle=None, *args, **options):
        key = (str(Path(bundle or TINY_BUNDLE).resolve()), args, repr(sorted(options.items())))
        if key not in opened:
            opened[key] = real(bundle, *args, **options)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoToAudio, "open", open_or_remember)
        yield


@pytest.fixture(scope="session")
def store_server():
    """The address of a server like that of Google Cloud Storage."""
    with running_server() as url:
        yield url


@pytest.fixture
def bucket(store_server, copies):
    """A new bucket."""
    return new_bucket(store_server, f"b-{secrets.token_hex(6)}")


@pytest.fixture
def copies(tmp_path_factory, monkeypatch):
    """A folder of its own for copies of what lies in a store."""
    folder = tmp_path_factory.mktemp("copies")
    monkeypatch.setenv("MFM_FILES", str(folder))
    return folder
