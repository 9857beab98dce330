"""Ctrl-C and SIGTERM at any moment: one line, exit code 130 or 143, nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = {signal.SIGINT: 130, signal.SIGTERM: 143}

PROGRAM = """
import hashlib, sys, threading, time
from pathlib import Path
from mfm_jax.runtime import signals
signals.catch("mfm x")
from mfm_jax.storage.files import atomic_write, new_folder

def swallowing():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def compiling():  # in C, where handlers of Python wait
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

folder = Path(sys.argv[1])
threading.Thread(target=time.sleep, args=(60,)).start()  # the interpreter would wait for it
with new_folder(folder / "folder") as half, atomic_write(folder / "file") as part:
    (half / "a").write_text("half")
    part.write_text("half")
    print("ready", flush=True)
    {"swallowing": swallowing, "compiling": compiling}[sys.argv[2]]()
"""


@pytest.fixture(autouse=True)
def _not_ignored():
    """Let processes of these tests get SIGINT, also where pytest is a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(process, number):
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (LINE[number], "")
    assert time.monotonic() - started < 5
    return err


@pytest.mark.parametrize("number", LINE)
@pytest.mark.parametrize("where", ["swallowing", "compiling"])
def test_a_signal_leaves_one_line_and_no_files(tmp_path, where, number):
    process = begun([sys.executable, "-c", PROGRAM, str(tmp_path), where])
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    assert ended(process, number) == "mfm x: stopped\n"
    assert list(tmp_path.iterdir()) == []


def begun(command):
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


PROGRAMS = {
    "mfm": ["-m", "mfm_jax.cli", "demo", "-o"],
    "python train.py": ["train.py", "--config", "tiny", "--workdir"],
    "python -m convert": ["-m", "convert", "gpt2", "absent", "-o"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_stopped_while_it_imports(tmp_path, name):
    process = begun([sys.executable, *PROGRAMS[name], str(tmp_path / "new")])
    caught = f"/proc/{process.pid}/status"
    while True:  # as soon as Python itself is ready
        (mask,) = (x for x in Path(caught).read_text().splitlines() if x.startswith("SigCgt"))
        if int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            break
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert ended(process, signal.SIGTERM).startswith(name)
    assert list(tmp_path.iterdir()) == []


def alive(number):
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


POOL = """
import os, sys, time
from pathlib import Path
from mfm_jax.runtime import signals
from mfm_jax.runtime.workers import map_in_processes
from mfm_jax.storage.files import atomic_write

def work(number):
    with atomic_write(Path(sys.argv[1]) / f"{number}.txt") as part:
        part.write_text(str(os.getpid()))
        time.sleep(60)

if __name__ == "__main__":
    signals.catch("mfm x")
    list(map_in_processes(work, range(4), processes=2))
"""


@pytest.mark.parametrize("number", [*LINE, signal.SIGKILL])
def test_worker_processes_end_with_the_command(tmp_path, number):
    program, folder = tmp_path / "pool.py", tmp_path / "made"
    program.write_text(POOL)
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while len(made := list(folder.iterdir())) < 2 or not all(p.stat().st_size for p in made):
        assert process.poll() is None
        time.sleep(0.01)
    workers = [int(part.read_text()) for part in made]
    if number == signal.SIGINT:  # a terminal sends it to all processes
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate(timeout=30)  # until the workers close their ends as well
    else:
        assert ended(process, number) == "mfm x: stopped\n"
    assert list(folder.iterdir()) == []
    patience = time.monotonic() + 10
    while any(map(alive, workers)):
        assert time.monotonic() < patience
        time.sleep(0.01)


NOHUP = """
import signal
from mfm_jax.runtime import signals
signal.signal(signal.SIGINT, signal.SIG_IGN)
signals.catch("mfm")
signal.raise_signal(signal.SIGINT)
print("on")
"""
LATE = """
import atexit, signal
atexit.register(signal.raise_signal, signal.SIGTERM)
from mfm_jax.runtime import signals
signals.catch("mfm")
print("on")
"""


@pytest.mark.parametrize("program", [NOHUP, LATE], ids=["nohup", "late"])
def test_what_nohup_ignores_and_what_comes_when_all_is_done_is_ignored(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
