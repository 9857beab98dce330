"""What a server has done, as Prometheus reads it. Nothing in it tells of one visitor."""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

BOUNDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
"""Seconds, of the histogram of how long jobs took."""


class Metrics:
    """Counts. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()  # by name and labels
        self._took: Counter[float] = Counter()  # jobs by the least bound that they keep
        self._seconds = 0.0

    def count(self, name: str, amount: int = 1, **labels: object) -> None:
        """Add to a counter."""
        told = ",".join(f'{label}="{value}"' for label, value in labels.items())
        with self._lock:
            self._counts[name, told] += amount

    def took(self, seconds: float | int) -> None:
        """Count a finished job and its seconds since it was sent."""
        with self._lock:
            self._took[next((bound for bound in BOUNDS if seconds <= bound), float("inf"))] += 1
            self._seconds += seconds

    def text(self, gauges: Mapping[str, float | int]) -> str:
        """Return everything in Prometheus's text format, with values of this moment."""
        lines: list[str] = []
        with self._lock:
            counts, took, seconds = dict(self._counts), Counter(self._took), self._seconds
        for name in sorted({name for name, _ in counts}):
            lines.append(f"# TYPE mfm_{name}_total counter")
            for (one, labels), count in sorted(counts.items()):
                if one == name:
                    lines.append(f"mfm_{name}_total{f'{{{labels}}}' if labels else ''} {count}")
        for gauge, value in gauges.items():
            lines += [f"# TYPE mfm_{gauge} gauge", f"mfm_{gauge} {value:g}"]
        lines.append("# TYPE mfm_job_seconds histogram")
        so_far = 0
        for bound in (*BOUNDS, float("inf")):
            so_far += took[bound]
            told = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'mfm_job_seconds_bucket{{le="{told}"}} {so_far}')
        lines += [f"mfm_job_seconds_sum {seconds:.3f}", f"mfm_job_seconds_count {so_far}"]
        lines += ["# TYPE process_resident_memory_bytes gauge"]
        lines.append(f"process_resident_memory_bytes {resident_memory()}")
        return "\n".join(lines) + "\n"


def resident_memory() -> int:
    """Return the bytes of memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
