"""Describe the machine of a benchmark in one line."""

import os
import platform
import subprocess
from pathlib import Path


def hardware(folder: Path) -> str:
    """Return processor, cores, memory, and the file system of `folder`."""
    info = Path("/proc/cpuinfo")
    said = info.read_text().splitlines() if info.exists() else []
    cpu = next((s.partition(": ")[2] for s in said if s.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    disk = subprocess.check_output(["df", "--output=fstype", folder], text=True).split()[-1]
    return f"{cpu or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, {disk}"
