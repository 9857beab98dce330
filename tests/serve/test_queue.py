"""The order of windows, the batches they are in, and the limits of visitors, without networks."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.errors import MediaError
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.media.video_info import VideoInfo
from mfm_jax.media.windows import Seen, Window
from mfm_jax.serve.guard import Guard
from mfm_jax.serve.jobs import Job, Jobs
from mfm_jax.serve.limits import Limits, Refused, span
from mfm_jax.serve.metrics import Metrics
from mfm_jax.serve.offer import Key
from mfm_jax.serve.queue import Queue
from mfm_jax.serve.schemas import SoundSettings, State
from mfm_jax.serve.service import sizes
from mfm_jax.serve.upload import Form, shown_name
from mfm_jax.serve.visitors import Visitors, visitor_of
from mfm_jax.serve.workers import reason
from tests.serve.running import MARK, form

USUAL, OTHER = Key(Sampling(steps=8), False), Key(Sampling(steps=25), False)
INFO = VideoInfo(1.0, 25.0, 25, 64, 64, 0, False)


def job(name: str, key: Key = USUAL, visitor: str = "someone", folder: Path = Path("x")) -> Job:
    return Job(
        name, visitor, f"{name}.mp4", folder, folder / "source", SoundSettings(), key, INFO, 1
    )


def window(job: Job, index: int) -> Window:
    seen = {"cavp": Seen(np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1))}
    return Window(index, 0.0, 1.0, seen)


def queue_of(*jobs: Job, most: int = 4, active: int = 8) -> Queue:
    """A queue whose jobs have all begun."""
    queue = Queue(lambda key: most, active)
    for each in jobs:
        queue.put(each)
        assert queue.next_job() is each
    return queue


def decode(queue: Queue, job: Job, count: int) -> None:
    for index in range(count):
        assert queue.offer(job, window(job, index))
    queue.decoded(job)


def daemon(target) -> threading.Thread:
    return threading.Thread(target=target, daemon=True)


def names(group) -> str:
    return "".join(f"{job.id}{window.index}" for job, window in group)


def test_windows_of_several_jobs_are_taken_in_turn():
    a, b, c = job("a"), job("b"), job("c")
    queue = queue_of(a, b, c)
    decode(queue, a, 4)
    decode(queue, b, 1)
    decode(queue, c, 2)
    taken = []
    while len(taken) < 2:
        taken.append(names(queue.next_batch()))
        queue.returned()
    assert taken == ["a0b0c0a1", "c1a2a3"], "no job waits for all of another"


def test_a_batch_has_one_key_and_every_key_has_its_turn():
    a, b, c = job("a"), job("b", OTHER), job("c")
    queue = queue_of(a, b, c, most=2)
    for each in (a, b, c):
        decode(queue, each, 2)
    taken = []
    for _ in range(3):
        taken.append(names(queue.next_batch()))
        queue.returned()
    assert taken == ["a0c0", "b0b1", "a1c1"]


def test_what_is_not_compiled_waits_and_holds_up_nobody():
    compiled = {USUAL: 2}
    queue = Queue(lambda key: compiled.get(key, 0), 8)
    a, b = job("a", OTHER), job("b")
    for each in (a, b):
        queue.put(each)
        queue.next_job()
        decode(queue, each, 1)
    assert names(queue.next_batch()) == "b0"
    queue.returned()
    found = []
    thread = daemon(lambda: found.append(names(queue.next_batch())))
    thread.start()
    time.sleep(0.05)
    assert found == []
    compiled[OTHER] = 1
    queue.wake()
    thread.join(5)
    assert found == ["a0"]


def test_a_batch_that_is_not_full_waits_while_the_device_is_busy():
    a, b = job("a"), job("b")
    queue = queue_of(a, b, most=2)
    decode(queue, a, 2)
    assert names(queue.next_batch()) == "a0a1", "a full one is computed at once"
    queue.offer(b, window(b, 0))
    found = []
    thread = daemon(lambda: found.append(names(queue.next_batch())))
    thread.start()
    time.sleep(0.1)
    assert found == []
    queue.offer(b, window(b, 1))
    thread.join(5)
    assert found == ["b0b1"]


def test_jobs_begin_in_order_and_only_so_many_at_a_time():
    a, b, c = job("a"), job("b"), job("c")
    queue = queue_of(a, active=1)
    queue.put(b)
    queue.put(c)
    assert [queue.position(each) for each in (a, b, c)] == [0, 1, 2]
    queue.drop(b)
    assert queue.position(c) == 1
    queue.drop(a)
    assert queue.next_job() is c


def test_who_sends_many_videos_does_not_hold_up_who_sends_one():
    first = job("a", visitor="one")
    queue = queue_of(first, active=1)
    many = [job(name, visitor="one") for name in "bcd"]
    single = job("e", visitor="two")
    for each in (*many, single):
        queue.put(each)
    assert [queue.position(each) for each in (single, *many)] == [1, 2, 3, 4]
    queue.drop(first)
    assert queue.next_job() is single


def test_a_job_that_is_dropped_gets_no_more_windows():
    a, b = job("a"), job("b")
    queue = queue_of(a, b, most=2)
    queue.offer(a, window(a, 0))
    queue.offer(a, window(a, 1))
    answers = []
    thread = daemon(lambda: answers.append(queue.offer(a, window(a, 2))))
    thread.start()
    queue.drop(a)
    thread.join(5)
    assert answers == [False]
    decode(queue, b, 1)
    assert names(queue.next_batch()) == "b0"


def test_a_stopped_queue_lets_everybody_go():
    queue = queue_of(job("a"))
    ended = []
    threads = [
        daemon(lambda wait=wait: ended.append(wait()))
        for wait in (queue.next_job, queue.next_batch)
    ]
    for thread in threads:
        thread.start()
    queue.stop()
    for thread in threads:
        thread.join(5)
    assert sorted(map(str, ended)) == ["None", "[]"]


def test_many_threads_lose_no_window():
    jobs = [job(f"{i}") for i in range(12)]
    queue, seen = Queue(lambda key: 4, 3), Counter()

    def decode_all() -> None:
        while (each := queue.next_job()) is not None:
            decode(queue, each, 5)

    threads = [daemon(decode_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for each in jobs:
        queue.put(each)
    while seen.total() < 60:
        for each, part in queue.next_batch():
            assert part.index == seen[each.id], "in order"
            seen[each.id] += 1
        queue.returned()
    queue.stop()
    for thread in threads:
        thread.join(5)
    assert set(seen.values()) == {5}


@pytest.fixture
def jobs(tmp_path) -> Jobs:
    return Jobs(tmp_path, Limits(queue=3, each=2, uploads=2, stored=1000, keep=60), lambda: None)


def test_what_is_being_sent_stays_until_it_is_sent(jobs, tmp_path):
    one = job("1")
    one.folder = tmp_path / "1"
    one.folder.mkdir()
    jobs.add(one)
    jobs.end(one, State.done)
    with jobs.sent(one):
        with jobs.sent(one):
            jobs.forget(one)
        assert jobs.get("1") is None
        assert one.folder.is_dir()
    assert not one.folder.exists()


def test_jobs_are_counted_for_each_visitor_and_for_all(jobs, tmp_path):
    for number in range(2):
        jobs.add(job(f"{number}", visitor="a"))
    with pytest.raises(Refused, match="you have 2 jobs under way") as refused:
        jobs.add(job("2", visitor="a"))
    assert refused.value.status == 429
    jobs.add(job("3", visitor="b"))
    with pytest.raises(Refused, match="the queue is full") as refused:
        jobs.reserve("c", 10)
    assert refused.value.status == 503
    jobs.end(jobs.get("0"), State.failed, "it was not to be")
    jobs.add(job("4", visitor="a"))
    jobs.closed = True
    with pytest.raises(Refused, match="about to stop"):
        jobs.check("d")


def test_uploads_are_counted_by_number_and_size(jobs):
    first = jobs.reserve("a", 200)
    assert jobs.stored("a") == 400, "the result is about as large"
    with pytest.raises(Refused, match="you upload too many videos at once"):
        jobs.reserve("a", 1)
    with pytest.raises(Refused, match="your results use up your space"):
        jobs.reserve("b", 251)
    second = jobs.reserve("b", 250)
    with pytest.raises(Refused, match="other videos are being uploaded"):
        jobs.reserve("c", 1)
    jobs.release(first)
    third = jobs.reserve("c", 200)
    jobs.release(second)
    jobs.add(job("done", visitor="b"))
    jobs.get("done").size = 500
    with pytest.raises(Refused, match="the server's space is used up"):
        jobs.reserve("d", 100)
    jobs.release(third)
    assert (jobs.stored(), list(jobs.folder.iterdir())) == (500, [])


def test_files_go_when_a_job_fails_or_has_been_kept_long_enough(jobs):
    folders = [jobs.reserve(visitor, 1) for visitor in ("a", "b")]
    failed, kept = (job(folder.name, folder=folder) for folder in folders)
    for each in (failed, kept):
        (each.folder / "source").write_bytes(b"x")
        jobs.add(each)
        jobs.release(each.folder, keep=True)
    assert jobs.end(failed, State.failed, "no")
    assert not failed.folder.exists()
    assert jobs.get(failed.id) is failed, "its reason can be read"
    assert jobs.end(kept, State.done)
    assert not jobs.end(kept, State.cancelled), "a state is final"
    jobs.expire(time.time() + 59)
    assert kept.folder.exists()
    jobs.expire(time.time() + 61)
    assert not kept.folder.exists()
    assert jobs.get(kept.id) is jobs.get(failed.id) is None


def test_a_visitor_is_an_address_or_a_network_of_ipv6():
    assert visitor_of("192.0.2.7") == "192.0.2.7"
    assert visitor_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert visitor_of("2001:db8::1") == visitor_of("2001:db8::ffff:2")
    assert visitor_of("2001:db8::1") != visitor_of("2001:db8:0:1::1")
    assert visitor_of(None) == "unknown"


def test_a_visitor_may_send_so_many_videos_a_minute():
    now = [0.0]
    visitors = Visitors(6, lambda: now[0])
    for _ in range(6):
        visitors.admit("a")
    with pytest.raises(Refused, match="more than 6 videos a minute") as refused:
        visitors.admit("a")
    assert (refused.value.status, refused.value.retry_after) == (429, 10)
    visitors.admit("b")
    now[0] = 10.5
    visitors.admit("a")
    with pytest.raises(Refused):
        visitors.admit("a")


def read(body: bytes, target: Path, piece: int) -> Form:
    found = Form(MARK.encode(), target, Limits())
    for at in range(0, len(body), piece):
        found.write(body[at : at + piece])
    found.finish()
    return found


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_a_form_is_read_in_any_pieces(tmp_path, piece):
    (video := tmp_path / "a b.mp4").write_bytes(b"\r\n--not the mark\r\n" * 40)
    body = form([("seed", 3), ("video", video), ("prompt", "Regen, größer")])
    found = read(body, tmp_path / "target", piece)
    assert found.fields == {"seed": "3", "prompt": "Regen, größer"}
    assert (found.name, found.size) == ("a b.mp4", video.stat().st_size)
    assert (tmp_path / "target").read_bytes() == video.read_bytes()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no form at all", "no multipart"),
        (form([("seed", 1)])[:-30], "ends in its middle"),
        (form([("seed", 1)]), "no file"),
        (f"--{MARK}\r\n{'X: y' * 9000}\r\n\r\n".encode(), "no multipart"),
        (f'--{MARK}\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff'.encode("latin-1")
         + f"\r\n--{MARK}--\r\n".encode(), "not UTF-8"),
    ],
    ids=["text", "cut", "no file", "long header", "latin"],
)  # fmt: skip
def test_a_broken_form_is_refused(tmp_path, body, words):
    with pytest.raises(Refused, match=words):
        read(body, tmp_path / "target", len(body))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/etc/passwd", "passwd"),
        ("C:\\videos\\a.mp4", "a.mp4"),
        ('a"\r\nSet-Cookie: x.mp4', "aSet-Cookie: x.mp4"),
        ("", "video"),
        ("..", ".."),
        ("x" * 300 + ".mp4", "x" * 96 + ".mp4"),
    ],
)
def test_names_of_files_are_only_shown(given, shown):
    assert shown_name(given) == shown


def test_what_a_visitor_is_told_has_no_paths_and_no_faults(tmp_path, capsys):
    one = job("secret-id", folder=tmp_path)
    allowed = "9 pixels, more than the 4 that are allowed: leave it out"
    told = f"{one.source} has {allowed}, or set MFM_MAX_PIXELS"
    assert reason(MediaError(told), one) == f"secret-id.mp4 has {allowed}"
    assert "fault of the server" in reason(KeyError("inner secret"), one)
    err = capsys.readouterr().err
    assert "KeyError" in err
    assert "secret-id" not in err


def test_metrics_are_those_of_prometheus():
    metrics = Metrics()
    metrics.count("jobs", state="done")
    metrics.count("jobs", 2, state="failed")
    for seconds in (0.1, 3, 1000):
        metrics.took(seconds)
    text = metrics.text({"watchers": 2})
    assert 'mfm_jobs_total{state="done"} 1\nmfm_jobs_total{state="failed"} 2\n' in text
    assert "# TYPE mfm_watchers gauge\nmfm_watchers 2\n" in text
    assert 'mfm_job_seconds_bucket{le="5"} 2\n' in text
    assert 'mfm_job_seconds_bucket{le="+Inf"} 3\n' in text
    assert text.count("# TYPE mfm_jobs_total") == 1


@pytest.mark.parametrize(
    ("batch", "shards", "found"), [(4, 1, [1, 2, 4]), (6, 1, [3, 6]), (8, 4, [4, 8]), (1, 1, [1])]
)
def test_smaller_batches_are_compiled_too(batch, shards, found):
    assert sizes(batch, shards) == found


def test_spans_are_told_as_people_do():
    assert [span(s) for s in (1.25, 60, 119, 120, 3600, 7200)] == [
        "1.25 s", "60 s", "119 s", "2 min", "60 min", "2 h",
    ]  # fmt: skip


def test_a_server_knows_its_names():
    async def app(scope, receive, send) -> None: ...

    guard = Guard(app, ["Sound.example.org"])

    def known(host: str) -> bool:
        scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())]}
        return guard._reason(scope) is None

    assert [
        known(host)
        for host in (
            "sound.example.org:8000",
            "localhost",
            "10.0.0.1:80",
            "[::1]",
            "x.org",
            "[",
            "",
        )
    ] == [True, True, True, True, False, False, False]
