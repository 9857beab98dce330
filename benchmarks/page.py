"""`python -m benchmarks.page`: how soon the page of a report of 1,000 clips can be used.

It writes the page of clips with drawn scores, opens it in headless Chromium, each time in a new
context, and measures how soon it is ready, how soon a key then moves the selection, how long a
filter and another order take, and the longest task, in which nothing answers. It needs playwright,
and a `chromium` on the path.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hardware import hardware
from mfm_jax.evaluation.assemble import assemble
from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.measure import Wave, measure
from mfm_jax.evaluation.page import Page
from mfm_jax.media.audio import RATE, write_sound

SEEN = {"width": 1440, "height": 900}
LONG_TASKS = """() => new Promise(found => {
    const tasks = [];
    new PerformanceObserver(list => tasks.push(...list.getEntries().map(task => task.duration)))
        .observe({type: "longtask", buffered: true});
    setTimeout(() => found(Math.max(0, ...tasks)), 50);
})"""
ANSWER = """([what, value]) => new Promise(found => {
    const began = performance.now();
    const done = () => setTimeout(() => found(performance.now() - began));
    if (what === "key") {
        document.getElementById("table").focus();
        document.activeElement.dispatchEvent(
            new KeyboardEvent("keydown", {key: value, bubbles: true, cancelable: true}));
    } else {
        const field = document.getElementById(what);
        field.value = value;
        field.dispatchEvent(new Event(what === "find" ? "input" : "change", {bubbles: true}));
    }
    requestAnimationFrame(done);
})"""
"""Does what a person would, and returns the milliseconds until the next frame was drawn."""


def write_page(folder: Path, count: int) -> Path:
    """Write the page of `count` clips of one system, whose files are those of one clip."""
    t = np.arange(round(1.2 * RATE)) / RATE
    real, made = (
        Wave((np.exp(-20 * np.maximum(t - at, 0)) * (t >= at) / 2).astype(np.float32), RATE)
        for at in (0.3, 0.35)
    )
    page, one = Page(folder), measure("one", real, {"ours": made}, None)
    one.media = page.add(0, {"reference": real, "ours": made}, None)
    write_sound(folder / "one.wav", real.own)
    names = tuple(f"clip-{number:04d}" for number in range(count))
    sounds = dict.fromkeys(names, Sound(folder / "one.wav"))
    rng, clips = np.random.default_rng(0), []
    for name in names:
        scores = {key: float(rng.random()) for key in one.scores["ours"]}
        clips.append(replace(one, name=name, scores={**one.scores, "ours": scores}))
    report = assemble(Pairing(names, sounds, {"ours": sounds}, {}), clips, [], {})
    report.protocol |= {"command": "", "seconds": 0.0, "onsets": "detected in the real sound"}
    page.write(report)
    return folder / "index.html"


def openings(browser: Any, file: Path, times: int) -> Iterator[dict[str, float]]:
    """Open the page several times; yield milliseconds by what was measured."""
    for _ in range(times):
        context = browser.new_context(viewport=SEEN, offline=True)
        page = context.new_page()
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        ready = float(page.evaluate("document.documentElement.dataset.ready"))
        before = page.inner_text("#detail h3")
        key = page.evaluate(ANSWER, ["key", "ArrowDown"])
        assert page.inner_text("#detail h3") != before, "the key moved nothing"
        found = page.evaluate(ANSWER, ["find", "rank<0.4"])
        assert " of " in page.inner_text("#count"), "the filter did nothing"
        sort = page.evaluate(ANSWER, ["sort", "name"])
        yield {
            "ready, from the start of loading": ready,
            "key": key,
            "filter": found,
            "sort": sort,
            "longest task": page.evaluate(LONG_TASKS),
        }
        context.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        file = write_page(Path(made), args.clips)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        rows = list(openings(browser, file, args.times))
        print(hardware(Path(made)))
        print(f"Chromium {browser.version}, {args.clips} clips, {file.stat().st_size / 1e6:.2f} MB")
        browser.close()
    print(f"{'milliseconds':34} {'first':>6} {'median':>6} {'most':>6}")
    for name in rows[0]:
        its = [row[name] for row in rows]
        print(f"{name:34} {its[0]:6.0f} {statistics.median(its):6.0f} {max(its):6.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
