"""`mfm serve` as it runs, with untrained networks: one server for all tests of this file."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import soundfile

import mfm_jax
from integrations.comfyui.client import ServerError
from integrations.comfyui.nodes import MFMSound
from mfm_jax.cli import main
from mfm_jax.media.probe import probe
from mfm_jax.media.write import write_frames
from tests.bundles import untrained_bundle
from tests.docs.blocks import ROOT, blocks
from tests.serve.running import MARK, Running, form, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LIMITS = ("--batch", "3", "--max-seconds", "20", "--max-size", "8", "--max-candidates", "2",
          "--per-minute", "1000", "--grace", "20")  # fmt: skip
RATE = 16_000
NEAR = 1e-4
"""Most by which a sample may differ from that of `mfm generate`: 16 bits are 3e-5."""


def clip(path: Path, seconds: float, *, seed: int = 0, fps: float = 12, sound: bool = False):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, round(seconds * fps)), 4, 6, 3), np.uint8)
    wave = None
    if sound:
        t = np.arange(round(seconds * RATE)) / RATE
        wave = (0.4 * np.sin(3000 * t) * (t % 0.5 < 0.1)).astype(np.float32)
    write_frames(iter(coarse.repeat(16, 1).repeat(16, 2)), path, fps=fps, wave=wave)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        "short": clip(folder / "short.mp4", 1.2, sound=True),
        "other": clip(folder / "other.mp4", 1.5, seed=1),
        "medium": clip(folder / "medium.mp4", 6, seed=2),
        "long": clip(folder / "long.mp4", 19, seed=3),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundle") / "untrained", steps=8).path


@pytest.fixture(scope="module")
def expected(bundle, clips, tmp_path_factory) -> dict[str, np.ndarray]:
    """What `mfm generate` makes. Its programs are those that the server then finds compiled."""
    folder, names = tmp_path_factory.mktemp("expected"), (clips["short"], clips["other"])
    files = mfm_jax.generate(names, folder, bundle=bundle, format="wav", batch=3)
    return {path.stem: soundfile.read(path)[0] for path in files}


@pytest.fixture(scope="module")
def server(bundle, expected, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running(folder, "--bundle", str(bundle), *LIMITS) as found:
        yield found


def done(server: Running, video: Path, **settings) -> dict:
    job = server.client.send(video, settings)
    return server.client.job(job["id"], 30)


def test_a_video_becomes_a_sound_and_nothing_stays(server, clips, expected, tmp_path):
    job = done(server, clips["short"])
    assert (job["state"], job["progress"], job["error"]) == ("done", 1.0, None)
    assert len(job["id"]) >= 22, "128 bits"
    here = f"/api/jobs/{job['id']}"
    for name in ("sound.mp4", "sound.wav"):
        server.client.fetch(job["id"], name, tmp_path / name)
    made, rate = soundfile.read(tmp_path / "sound.wav")
    assert rate == RATE
    np.testing.assert_allclose(made, expected["short"], atol=NEAR)
    assert probe(tmp_path / "sound.mp4").has_audio
    assert packets(tmp_path / "sound.mp4") == packets(clips["short"])
    _, told, _ = server.ask("GET", f"{here}/analysis.json")
    new, own = told["sounds"]
    assert (new["name"], own["name"]) == ("generated", "original")
    assert len(own["onsets"]) >= 2
    for sound in (new, own):
        assert server.ask("GET", sound["picture"])[1].startswith(b"\x89PNG")
        assert server.ask("GET", sound["sound"])[1].startswith(b"RIFF")
    _, part, headers = server.ask("GET", f"{here}/sound.mp4", headers={"Range": "bytes=4-7"})
    assert (part, headers["cache-control"]) == (b"ftyp", "no-store"), "players seek"
    _, _, headers = server.ask("GET", f"{here}/sound.wav?download=true")
    assert headers["content-disposition"] == "attachment; filename*=utf-8''short-sound.wav"
    assert server.ask("DELETE", here)[0] == 204
    assert [server.ask("GET", f"{here}{rest}")[0] for rest in ("", "/sound.mp4")] == [404, 404]
    server.until(lambda: not server.files())


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(video=0) if p.size]


@pytest.fixture(scope="module")
def unwanted(clips, tmp_path_factory) -> dict[str, list]:
    """Forms that are refused."""
    folder = tmp_path_factory.mktemp("unwanted")
    (text := folder / "notes.mp4").write_text("This is no video.\n" * 100)
    (empty := folder / "empty.mp4").touch()
    (cut := folder / "cut.mp4").write_bytes(clips["short"].read_bytes()[:900])
    grey = np.zeros((16, 16, 3), np.uint8)
    write_frames((grey for _ in range(720)), (hours := folder / "hours.mp4"), fps=0.1)
    wide = np.zeros((2400, 4100, 3), np.uint8)
    write_frames([wide], (large := folder / "large.mp4"), fps=1, crf=51)
    (huge := folder / "huge.mp4").write_bytes(bytes(9 << 20))
    video = ("video", clips["short"])
    return {
        "text": [("video", text)],
        "empty": [("video", empty)],
        "cut": [("video", cut)],
        "hours": [("video", hours)],
        "large": [("video", large)],
        "huge": [("video", huge)],
        "none": [("seed", 1)],
        "two": [video, video],
        "another file": [video, ("sound", text)],
        "steps": [video, ("steps", 7)],
        "guidance": [video, ("guidance", 2.25)],
        "nan": [video, ("guidance", "nan")],
        "seed": [video, ("seed", -1)],
        "words": [video, ("seed", "one")],
        "candidates": [("candidates", 3), video],
        "prompt": [video, ("prompt", "rain")],
        "unknown": [video, ("sampler", "ddim")],
        "twice": [video, ("seed", 1), ("seed", 2)],
        "much": [video, ("prompt", "x" * 70_000)],
        "many": [*((f"field{i}", 1) for i in range(20)), video],
    }


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("text", 422, "notes.mp4 is not a readable video"),
        ("empty", 422, "the video is empty"),
        ("cut", 422, "cut.mp4"),
        ("hours", 422, "the video is 2 h long and may be 20 s: cut it"),
        ("large", 422, "large.mp4 has 9840000 pixels, more than the 9437184 that are allowed"),
        ("huge", 413, "the video is larger than 8 MiB"),
        ("none", 422, "the form has no file: send one in the field 'video'"),
        ("two", 422, "two videos"),
        ("another file", 422, "only 'video' is one"),
        ("steps", 422, "steps must be one of 8, 10, 25, 50, 100, got 7"),
        ("guidance", 422, "guidance must be one of 1, 1.5"),
        ("nan", 422, "guidance must be one of"),
        ("seed", 422, "seed: input should be greater than or equal to 0"),
        ("words", 422, "seed: input should be a valid integer"),
        ("candidates", 422, "candidates must be at most 2, got 3"),
        ("prompt", 422, "reads no text: leave prompt out"),
        ("unknown", 422, "sampler: extra inputs are not permitted"),
        ("twice", 422, "comes twice"),
        ("much", 413, "more than 64 KiB"),
        ("many", 422, "more than 16 fields"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(server, unwanted, kind, status, words):
    found, answer = server.send(unwanted[kind])
    assert (found, list(answer)) == (status, ["detail"])
    assert words in answer["detail"]
    assert "/" not in answer["detail"].replace("/openapi.json", ""), "no path of the server"
    assert "\n" not in answer["detail"]
    assert server.files() == []


def test_two_gigabytes_are_refused_before_they_come(server):
    """Announced ones at once, and others when they pass the limit; none of it stays."""
    before = server.metric("process_resident_memory_bytes")
    sent, answer = flood(server, "Content-Length: 2147483648\r\n", lambda piece: piece)
    assert b" 413 " in answer
    assert b"larger than 8 MiB" in answer
    assert sent < 64 << 20

    def chunk(piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece)

    sent, answer = flood(server, "Transfer-Encoding: chunked\r\n", chunk)
    assert b" 413 " in answer
    assert sent < 64 << 20
    assert server.files() == []
    assert server.metric("process_resident_memory_bytes") - before < 64 << 20
    assert server.metric("mfm_stored_bytes") == 0


def flood(server: Running, header: str, packed) -> tuple[int, bytes]:
    """Send 2 GiB as long as the server reads; return how much that was, and its answer."""
    address = urlsplit(server.url)
    head = (
        f"POST /api/jobs HTTP/1.1\r\nHost: {address.netloc}\r\n{header}"
        f"Content-Type: multipart/form-data; boundary={MARK}\r\n\r\n"
    )
    begin = f'--{MARK}\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\n'
    sent, piece = 0, bytes(1 << 20)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head.encode() + packed(begin.encode()))
        try:
            while sent < 2 << 30:
                connection.sendall(packed(piece))
                sent += len(piece)
        except OSError:
            pass  # it has closed the connection
        return sent, connection.recv(1 << 16)


def test_two_visitors_share_batches_and_nothing_else(server, clips, expected, tmp_path):
    before = {name: server.metric(name) for name in (BATCHES, WINDOWS, SHARED)}

    sent: dict[str, list[str]] = {"short": [], "other": []}
    for _ in range(6):
        for address, name in (("127.0.0.2", "short"), ("127.0.0.3", "other")):
            _, job = server.send([("video", clips[name])], visitor=address)
            sent[name].append(job["id"])
    assert len({*sent["short"], *sent["other"]}) == 12
    for name, ids in sent.items():
        for job in ids:
            server.client.fetch(job, "sound.wav", tmp_path / "sound.wav", wait=30)
            made, _ = soundfile.read(tmp_path / "sound.wav")
            np.testing.assert_allclose(made, expected[name], atol=NEAR)
            server.client.remove(job)
    batches, windows, shared = (server.metric(name) - before[name] for name in before)
    assert windows == 12
    assert batches < windows
    assert shared > batches, "some batches have windows of both"


BATCHES, WINDOWS = "mfm_batches_total", "mfm_windows_total"
SHARED = "mfm_visitors_in_batches_total"


def test_a_job_is_found_only_by_its_id(server, clips):
    job = done(server, clips["other"])
    here = f"/api/jobs/{job['id']}"
    _, analysis, _ = server.ask("GET", f"{here}/analysis.json")
    assert [sound["name"] for sound in analysis["sounds"]] == ["generated"]
    assert server.ask("GET", f"{here}/original.wav")[0] == 404, "it has no sound of its own"
    for path in (
        "/api/jobs",
        "/api/jobs/",
        "/api/jobs/x",
        f"{here[:-1]}x",
        f"{here}/source.mp4",
        f"{here}/..%2f..%2fetc%2fpasswd",
        f"{here}/%2e%2e/{job['id']}/source.mp4",
        "/docs",
    ):
        assert server.ask("GET", path)[0] in (404, 405), path
    assert server.ask("DELETE", "/api/jobs/x")[0] == 404
    text = server.ask("GET", "/metrics")[1].decode() + server.log.read_text()
    assert job["id"] not in text
    assert "other" not in text
    server.client.remove(job["id"])


def test_a_cancelled_job_ends_at_once_and_the_next_one_is_made(server, clips):
    jobs = [server.client.send(clips["long"], {}) for _ in range(4)]
    events = followed(server, jobs[0]["id"])
    server.until(lambda: server.client.job(jobs[0]["id"])["progress"] > 0)
    waiting = [server.client.job(job["id"])["position"] for job in jobs]
    assert sorted(waiting)[:2] == [0, 0]
    for job in jobs:
        server.client.remove(job["id"])
    assert server.metric("mfm_jobs_running") == server.metric("mfm_jobs_waiting") == 0
    last = done(server, clips["short"])
    assert last["state"] == "done"
    server.client.remove(last["id"])
    states = [event["state"] for event in events()]
    assert states[-1] == "cancelled"
    assert {"running", "cancelled"} <= set(states)
    with pytest.raises(ServerError, match="no such job"):
        server.client.job(jobs[0]["id"])
    server.until(lambda: not server.files())


def followed(server: Running, job: str):
    """Follow the events of a job in a thread; return a function that waits for all of them."""
    found: list[dict] = []

    def read() -> None:
        _, text, _ = server.ask("GET", f"/api/jobs/{job}/events")
        found.extend(
            json.loads(line[6:]) for line in text.decode().split("\n\n") if line[:6] == "data: "
        )

    thread = threading.Thread(target=read)
    thread.start()
    server.until(lambda: server.metric("mfm_watchers") > 0)

    def events() -> list[dict]:
        thread.join(20)
        return found

    return events


def test_a_closed_tab_loses_no_job_and_a_closed_upload_leaves_nothing(server, clips):
    job = server.client.send(clips["medium"], {})
    address = urlsplit(server.url)
    tab = socket.create_connection((address.hostname, address.port))
    events = f"/api/jobs/{job['id']}/events"
    tab.sendall(f"GET {events} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
    assert b"text/event-stream" in tab.recv(4096)
    assert server.metric("mfm_watchers") == 1
    tab.close()
    server.until(lambda: server.metric("mfm_watchers") == 0)
    assert server.client.job(job["id"], 30)["state"] == "done"
    server.client.remove(job["id"])
    ended, files = server.metric("mfm_uploads_ended_total"), server.files()
    body = form([("video", clips["long"])])
    with socket.create_connection((address.hostname, address.port)) as upload:
        upload.sendall(
            f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: multipart/form-data; boundary={MARK}\r\n\r\n".encode()
        )
        upload.sendall(body[: len(body) // 2])
        server.until(lambda: server.metric("mfm_stored_bytes") >= 2 * len(body))
    server.until(lambda: server.metric("mfm_uploads_ended_total") == ended + 1)
    assert server.files() == files
    assert server.metric("mfm_jobs_running") == server.metric("mfm_jobs_waiting") == 0


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "localhost"}, 200),
        ("GET", {"Host": "[::1]:80"}, 200),
        ("GET", {"Host": "sound.example.org"}, 421),
        ("GET", {"Host": ""}, 421),
        ("GET", {"Origin": "http://example.org"}, 200),
        ("POST", {"Origin": "http://example.org"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {}, 415),
    ],
)
def test_other_sites_cannot_use_it(server, method, headers, status):
    path = "/api" if method == "GET" else "/api/jobs"
    found, _, answered = server.ask(method, path, headers=headers)
    assert found == status
    assert "access-control-allow-origin" not in answered
    assert answered["x-content-type-options"] == "nosniff"
    assert "script-src 'self'" in answered["content-security-policy"]


def test_it_describes_itself(server):
    assert server.ask("GET", "/health")[:2] == (200, {"ok": True})
    _, api, _ = server.ask("GET", "/openapi.json")
    form_of_jobs = api["paths"]["/api/jobs"]["post"]["requestBody"]["content"]
    fields = form_of_jobs["multipart/form-data"]["schema"]["properties"]
    assert {"video", "prompt", "negative_prompt", "seed", "steps", "guidance"} <= set(fields)
    for path in ("", "/events", "/sound.mp4", "/sound.wav", "/analysis.json"):
        assert "404" in api["paths"][f"/api/jobs/{{id}}{path}"]["get"]["responses"]
    offered = server.client.server()
    assert (offered["seconds"], offered["upload_bytes"], offered["prompts"]) == (20, 8 << 20, False)
    _, text, headers = server.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in text.decode().splitlines():
        assert line.startswith("# TYPE ") or float(line.rsplit(" ", 1)[1]) >= 0
    _, page, headers = server.ask("GET", "/")
    assert b"http://" not in page.replace(b"http://www.w3.org", b""), "nothing from elsewhere"


def test_the_node_for_comfyui_gives_back_a_sound(server, clips):
    class Video:
        """Saves itself as a VIDEO of ComfyUI does, which is not installed here."""

        def save_to(self, path: str) -> None:
            shutil.copyfile(clips["short"], path)

    assert set(MFMSound.INPUT_TYPES()["required"]) == {
        "video", "server", "seed", "candidates", "steps", "guidance",
    }  # fmt: skip
    (sound,) = MFMSound().make(Video(), server.url, 1, 2, 0, 0.0)
    assert sound["sample_rate"] == RATE
    assert tuple(sound["waveform"].shape) == (1, 1, round(probe(clips["short"]).seconds * RATE))
    server.until(lambda: not server.files())
    with pytest.raises(ServerError, match="steps must be one of"):
        MFMSound().make(Video(), server.url, 1, 1, 3, 0.0)
    with pytest.raises(ServerError, match="does not answer"):
        MFMSound().make(Video(), "127.0.0.1:9", 1, 1, 0, 0.0)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_document_work(server, clips, tmp_path):
    (block,) = (each for each in blocks(ROOT / "docs" / "serve.md") if "curl" in each.text)
    shutil.copyfile(clips["short"], tmp_path / "clip.mp4")
    lines = block.text.replace("http://127.0.0.1:8000", server.url)
    subprocess.run(["bash", "-euo", "pipefail", "-c", lines], cwd=tmp_path, check=True)
    assert probe(tmp_path / "sound.mp4").has_audio
    server.until(lambda: not server.files())


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_visitor_hears_a_sound_in_the_browser(server, clips, tmp_path):
    """Upload a video, hear its sound and the original, download it, come back, and remove it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(30_000)
        told = []
        ours = (server.url, "blob:", "data:")
        page.on("console", lambda m: told.append(m.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda r: told.append(r.url) if not r.url.startswith(ours) else None)
        page.goto(server.url)
        server.until(lambda: page.evaluate("document.documentElement.dataset.ready"))
        page.click("#send")
        assert page.inner_text("#problem") == "Choose a video first."
        page.set_input_files("#file", clips["short"])
        page.fill("#seed", "7")
        page.click("#send")
        page.click("#play")
        playing = "document.querySelector('.film video').currentTime"
        server.until(lambda: page.evaluate(playing) > 0.2)
        server.until(lambda: float(page.inner_text("#clock").split()[0]) > 0.2)
        assert page.locator(".lane").count() == 2
        assert page.evaluate(
            "[...document.querySelectorAll('.lane img')].every(i => i.naturalWidth)"
        )
        page.keyboard.press("2")
        assert page.get_attribute(".lane.original", "aria-pressed") == "true"
        with page.expect_download() as download:
            page.click("text=Video (MP4)")
        download.value.save_as(tmp_path / "sound.mp4")
        assert download.value.suggested_filename == "short-sound.mp4"
        assert probe(tmp_path / "sound.mp4").has_audio
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.set_viewport_size({"width": 1440, "height": 900})
        page.reload()
        page.wait_for_selector("#play")
        assert page.inner_text("#stage h3").startswith("short.mp4")
        assert "seed 7" in page.inner_text("#stage h3 small")
        page.get_by_role("button", name="Remove", exact=True).click()
        page.wait_for_selector(".empty")
        browser.close()
    assert told == []
    server.until(lambda: not server.files())


def test_a_command_that_cannot_serve_says_so_in_one_line(server, monkeypatch, capsys):
    port = str(urlsplit(server.url).port)
    assert main(["serve", "--port", port]) == 2
    assert (
        "cannot be used (address already in use): choose another --port" in capsys.readouterr()[1]
    )
    assert main(["serve", "--host", "192.0.2.1"]) == 2
    assert "192.0.2.1 port 8000 cannot be used" in capsys.readouterr()[1]
    for name in [each for each in sys.modules if each.startswith(("mfm_jax.serve", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr()[1].splitlines()
    assert line == "mfm serve: fastapi is not installed: pip install 'mfm-jax[serve]'"


def test_a_stopped_server_finishes_what_it_has_begun(server, clips, tmp_path):
    """The last test of this file: what is under way is made and fetched, and the rest refused."""
    job = server.client.send(clips["medium"], {})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.client.fetch, job["id"], "sound.wav", tmp_path / "s.wav", 30)
        server.until(lambda: server.client.job(job["id"])["state"] == "running")
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.ask("GET", "/health")[0] == 503)
        status, answer = server.send([("video", clips["short"])])
        assert (status, answer["detail"]) == (503, "the server is about to stop: try later")
        waiting.result(30)
    assert soundfile.info(tmp_path / "s.wav").duration == pytest.approx(6, abs=0.1)
    assert server.process.wait(20) == 128 + signal.SIGTERM
    assert list(server.folder.iterdir()) == []
    log = server.log.read_text()
    assert "1 job is finished first" in log
    assert log.endswith("mfm serve: stopped\n")
    assert "Traceback" not in log
