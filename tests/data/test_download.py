import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from promptvit.data.download import download
from promptvit.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves CONTENT with ranges; breaks off each of the first `breaks` answers after `step` bytes."""

    daemon_threads = True
    content, tag, breaks, step, ranges = CONTENT, '"one"', 0, 100_000, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/bundle.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if "gone" in self.path:
            return self.send_error(404)
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        end = total
        if server.breaks:
            server.breaks -= 1
            end = start + server.step
        self.wfile.write(server.content[start:end])
        self.close_connection = True
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def same(path, content=CONTENT):
    return hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_a_connection_that_breaks_in_the_middle_is_taken_up_there(server, tmp_path):
    server.breaks = 2
    seen = []
    path = download(server.url, tmp_path / "a.zip", progress=lambda done, total: seen.append((done, total)), pause=0.0)
    assert same(path)
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]
    assert seen[-1] == (300_000, 300_000)
    assert [each.name for each in tmp_path.iterdir()] == ["a.zip"]


def test_a_killed_process_goes_on_where_it_was(server, tmp_path):
    server.breaks, server.step = 99, 0
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1000])
    (tmp_path / "a.zip.tag").write_text(server.tag)
    with pytest.raises(DataError, match=r"cannot be loaded: .*byte 1,000.*Run the same command again"):
        download(server.url, tmp_path / "a.zip", attempts=2, pause=0.0)
    server.breaks = 0
    assert same(download(server.url, tmp_path / "a.zip", pause=0.0))
    assert server.asked == ["bytes=1000-"] * 3


def test_a_file_that_has_changed_is_loaded_anew(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"of another file")
    (tmp_path / "a.zip.tag").write_text('"other"')
    assert same(download(server.url, tmp_path / "a.zip", pause=0.0))


def test_a_part_without_a_tag_or_a_server_without_ranges_begins_again(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"of what?")
    assert same(download(server.url, tmp_path / "a.zip", pause=0.0))
    server.ranges, server.breaks = False, 1
    assert same(download(server.url, tmp_path / "b.zip", pause=0.0))


def test_all_may_have_come_before_the_kill(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    (tmp_path / "a.zip.tag").write_text(server.tag)
    assert same(download(server.url, tmp_path / "a.zip", pause=0.0))
    (tmp_path / "b.zip.part").write_bytes(CONTENT + b"more")
    (tmp_path / "b.zip.tag").write_text(server.tag)
    assert same(download(server.url, tmp_path / "b.zip", pause=0.0))


def test_what_is_not_there_is_one_message(server, tmp_path):
    with pytest.raises(DataError, match=r"answers 404 Not Found. Check the address"):
        download(f"{server.url}/gone", tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"cannot be loaded: .*refused"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", attempts=1)
