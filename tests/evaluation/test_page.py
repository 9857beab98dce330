"""The page in a real browser: headless Chromium, from a folder, without a network."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.page import write_page
from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.evaluate import Settings, evaluate_pairs
from mfm_jax.media.audio import write_sound
from mfm_jax.media.write import write_frames

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browsers = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
WIDE, NARROW = (1440, 900), (390, 844)
RATE = 16_000


@pytest.fixture(scope="module")
def chromium():
    """A browser, which the tests of this file share."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, page_file, size=WIDE, **settings):
    """Open a page; afterwards it must have told no error and asked for nothing elsewhere."""
    context = chromium.new_context(
        viewport={"width": size[0], "height": size[1]}, offline=True, **settings
    )
    page, told = context.new_page(), []
    page.on("console", lambda m: told.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("requestfailed", lambda r: told.append(r.url) if "ERR_ABORTED" not in r.failure else 0)
    page.goto(page_file.as_uri())
    page.set_default_timeout(8000)
    page.wait_for_function("document.documentElement.dataset.ready")
    yield page
    assert told == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()


def strike(at, seconds=1.2):
    t = np.arange(round(seconds * RATE)) / RATE - at
    return ((t >= 0) * 0.5 * np.exp(-20 * np.maximum(t, 0)) * np.sin(3000 * t)).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of three clips and two systems; one name tries to be more than a name."""
    folder = tmp_path_factory.mktemp("evaluated")
    names = ("</script><b>x", "b & c", "d")
    sides: dict = {}
    for side, late in (("real", 0.0), ("ours", 0.02), ("theirs", 0.3)):
        (folder / side).mkdir()
        for number, name in enumerate(names):
            sides.setdefault(side, {})[name] = Sound(folder / side / f"{number}.wav")
            write_sound(sides[side][name].path, strike(0.3 + 0.1 * number + late))
    video = folder / "real" / "2.mp4"
    pictures = (255 * np.random.default_rng(0).random((30, 32, 48, 3))).astype(np.uint8)
    write_frames(iter(pictures), video, fps=25, wave=strike(0.5))
    real = sides.pop("real") | {"d": Sound(video)}
    pairing = Pairing(tuple(sorted(names)), real, sides, {})
    contacts = {name: [0.3 + 0.1 * number] for number, name in enumerate(names)}
    evaluate_pairs(pairing, folder / "report", Settings(published=True), contacts=contacts)
    return folder / "report" / "index.html"


@browsers
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1440", "390"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors(chromium, report, size, scheme):
    with opened(chromium, report, size, color_scheme=scheme) as page:
        assert page.inner_text("h1") == "ours and theirs beside the real sound"
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.locator(".card").count() >= 6
        for section in ("spread", "protocol"):
            page.locator(f"#{section}").scroll_into_view_if_needed()
        page.wait_for_selector("#how dl")
        page.locator("#all summary").click()
        page.wait_for_selector("#figures tbody tr")
        assert page.locator("#figures tbody tr").count() > 20
        assert page.locator("#figures").inner_text().count("As published scripts compute it") == 1
        page.locator("#theme").click()
        assert page.evaluate("document.documentElement.dataset.theme") != scheme


@browsers
def test_the_keyboard_is_enough(chromium, report):
    with opened(chromium, report) as page:
        heading = page.locator("#detail h3")
        page.focus("#table")
        first = heading.inner_text()
        page.keyboard.press("ArrowDown")
        assert heading.inner_text() != first
        page.keyboard.press("Home")
        assert heading.inner_text() == first
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert heading.inner_text() == first
        page.keyboard.press("/")
        page.keyboard.type("b &")
        assert page.inner_text("#count") == "1 of 3"
        page.keyboard.press("Control+A")
        page.keyboard.type("onset_f1_300<0.5 rank>=0")
        assert page.inner_text("#count") == "0 of 3"
        assert page.is_visible("#none")
        page.keyboard.press("Control+A")
        page.keyboard.type("</script>")
        assert "</script><b>x" in page.locator("#rows .row").inner_text()


@browsers
def test_sounds_play_in_step_with_the_picture_and_are_switched(chromium, report):
    with opened(chromium, report) as page:
        page.fill("#find", "d")
        page.locator("#rows .row").first.click()
        assert page.locator(".lane").count() == 3
        assert page.locator(".contact").count() == 3
        page.locator("#detail video").wait_for()
        page.focus("#table")
        page.keyboard.press(" ")
        page.wait_for_function("parseFloat(document.getElementById('clock').textContent) > 0.05")
        page.keyboard.press("2")
        assert page.get_attribute(".lane[aria-pressed=true]", "data-side") == "ours"
        assert page.get_attribute("#play", "aria-label") == "Pause"
        page.wait_for_function("!document.querySelector('video').paused")
        page.keyboard.press(" ")
        assert page.get_attribute("#play", "aria-label") == "Play"
        loaded = "[...document.querySelectorAll('#detail img')].every((i) => i.naturalWidth)"
        assert page.evaluate(loaded)


@browsers
def test_a_phone_shows_a_clip_on_a_sheet_of_its_own(chromium, report):
    with opened(chromium, report, NARROW) as page:
        assert not page.is_visible("#detail")
        page.locator("#rows .row").nth(1).click()
        assert page.is_visible("#detail .lane")
        page.keyboard.press("Escape")
        assert not page.is_visible("#detail")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of a thousand clips, whose files are those of one."""
    return write_page(tmp_path_factory.mktemp("large"), 1000)


@browsers
def test_a_thousand_clips_are_ready_at_once_and_only_those_in_view_are_drawn(chromium, large):
    with opened(chromium, large) as page:
        milliseconds = float(page.evaluate("document.documentElement.dataset.ready"))
        assert milliseconds < 3000
        assert page.locator("#rows .row").count() < 60
        assert page.inner_text("#count") == "1000, the worst first"
        page.focus("#table")
        page.keyboard.press("End")
        assert page.inner_text("#detail h3 small").startswith("1000 of 1000")
        page.fill("#find", "rank<0.4 clip-00")
        assert page.locator("#rows .row").count() < 60
        page.fill("#find", "")
        page.locator("#spread").scroll_into_view_if_needed()
        page.locator(".bars button[tabindex='0']").first.click()
        assert " of 1000" in page.inner_text("#count")


def test_the_page_holds_its_data_and_asks_for_no_other_place(report):
    text = report.read_text()
    assert "https://" not in text.split("<script", 1)[0]
    data = text.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    assert "<" not in data
    clips = {clip["name"]: clip for clip in json.loads(data)["clips"]}
    assert clips["</script><b>x"]["contacts"] == [0.3]
