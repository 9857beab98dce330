"""A run whose machine is taken away saves in time, or says that it could not."""

import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from mfm_jax.storage.checkpoints import Checkpoints
from mfm_jax.train import stop
from tests.train.regression import Regression, config
from train import train


@contextmanager
def metadata(told):
    """Serve the metadata of a machine, by their names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = self.headers["Metadata-Flavor"] == "Google" and name in told
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(told.get(name, "").encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_notice_of_the_machine_stops_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stop, "POLL", 0.02)
    told = {"preempted": "FALSE", "maintenance-event": "NONE"}

    class Warned(Regression):
        def evaluate(self, *args):
            if len(self.log) == 1:
                told["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
                time.sleep(0.3)
            return super().evaluate(*args)

    with metadata(told) as host:
        monkeypatch.setenv(stop.HOST, host)
        assert stop.is_about_to_go(host) is None
        assert train(config(Warned()), tmp_path, "test") == 143
        assert train(config(Regression()), tmp_path, "test") in (0, 143)
    said = capsys.readouterr().out
    assert "about to go (maintenance-event TERMINATE_ON_HOST_MAINTENANCE)" in said
    assert "stopped at step 6: the same command continues from there" in said


def test_machines_without_metadata_are_not_asked(monkeypatch, tmp_path):
    monkeypatch.delenv(stop.HOST, raising=False)
    monkeypatch.setattr(stop, "MACHINE", tmp_path / "product_name")
    assert stop.metadata_host() is None
    (tmp_path / "product_name").write_text("Google Compute Engine\n")
    assert stop.metadata_host() == "metadata.google.internal"
    assert stop.is_about_to_go("127.0.0.1:9") is None


def test_it_says_that_it_could_not_save_in_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stop, "GRACE", 0.7)
    close = Checkpoints.close
    monkeypatch.setattr(Checkpoints, "close", lambda self: (time.sleep(1.5), close(self)))
    assert train(config(Regression(stop_at=1), save_every=3), tmp_path, "test") == 143
    said = capsys.readouterr().out
    assert "not saved 0.7 s after the run was asked to stop" in said
    assert re.search("if it is killed now, the same command continues from step [36]\n", said)
