"""Downloads against a web server on this machine that cuts connections, changes files and answers wrongly."""

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from llm_mojo import Error, download, tokenize
from mojo_programs import TIMEOUT, wait_for

CONTENT = bytes(range(256)) * 1600  # 409,600 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path. The attributes make it misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.modified = None
        self.status = []  # answers to give first, each once
        self.serves = None  # how many requests before all others are answered 503
        self.cuts = []  # bytes of body after which the next connections are cut
        self.takes_ranges = True
        self.heeds_if_range = True
        self.headers = {}  # to send instead of, or beside, the usual ones
        self.drips = False  # one byte now and then, for ever
        self.endless = False
        self.pause = 0.0  # seconds after the first half of the body
        self.goes_on = threading.Event()  # ends the pause
        self.requests = []  # headers of each
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"

    def ranges(self):
        return [headers.get("Range") for headers in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers)
        if server.serves is not None and len(server.requests) > server.serves:
            self.send_error(503)
            return
        if server.status:
            self.send_error(server.status.pop(0))
            return
        start = self.start_of_range()
        if start is not None and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start or 0 :]
        self.send_response(200 if start is None else 206)
        for name, value in ({"Content-Length": str(len(body))} | server.headers).items():
            self.send_header(name, value) if value else None
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        self.end_headers()
        try:
            while server.endless:
                self.wfile.write(bytes(100_000))
            while server.drips and not server.goes_on.wait(0.02):
                self.wfile.write(b"x")
                self.wfile.flush()
        except OSError:  # the reader has gone
            return
        if server.drips:
            return
        if server.cuts:
            body = body[: server.cuts.pop(0)]
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        server.goes_on.wait(server.pause)
        self.wfile.write(body[len(body) // 2 :])

    def start_of_range(self):
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        same = condition in (None, self.server.etag, self.server.modified) or not self.server.heeds_if_range
        return int(match[1]) if match and same and self.server.takes_ranges else None


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.goes_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_MOJO_CACHE", raising=False)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)


def fetch(server, sha256=None):
    return download.fetch("set", "file.bin", server.url, sha256)


def files():
    return sorted(path.name for path in download.CACHE.rglob("*") if path.is_file() and path.name != ".lock")


def part():
    return download.CACHE / "set/file.bin.part"


def fail_with_part(server, cut):
    """Leaves a part of at least a block behind, as after a connection that was lost for good."""
    server.cuts, server.serves = [cut], 1
    with pytest.raises(Error, match="bytes are kept in data/.cache/set/file.bin.part, the same command goes on"):
        fetch(server)
    server.serves, server.requests = None, []
    assert 0 < part().stat().st_size <= cut


def test_download_and_cache(server):
    path = fetch(server, SHA256)
    assert str(path) == "data/.cache/set/file.bin"
    assert path.read_bytes() == CONTENT
    assert files() == ["file.bin"]
    assert fetch(server, SHA256) == path
    assert len(server.requests) == 1


def test_given_folder_is_looked_in_first(server, tmp_path, monkeypatch):
    given = tmp_path / "given/set/file.bin"
    given.parent.mkdir(parents=True)
    given.write_bytes(CONTENT)
    monkeypatch.setenv("LLM_MOJO_CACHE", str(tmp_path / "given"))
    assert fetch(server, SHA256) == given
    assert server.requests == [] and files() == []
    given.write_bytes(b"other")
    with pytest.raises(Error, match=f"expected SHA-256 {SHA256} .published., found d9298a10d1b"):
        fetch(server, SHA256)
    assert given.read_bytes() == b"other"


def test_a_cut_connection_is_taken_up_again(server):
    server.cuts = [200_000, 100_000, 70_000]
    assert fetch(server, SHA256).read_bytes() == CONTENT
    starts = [int(value[6:-1]) for value in server.ranges()[1:]]
    assert server.ranges()[0] is None
    assert starts == sorted(starts) and starts[0] > 0
    assert all(headers["If-Range"] == '"one"' for headers in server.requests[1:])


def test_a_later_run_continues(server):
    fail_with_part(server, 200_000)
    size = part().stat().st_size
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={size}-"]
    assert files() == ["file.bin", "file.bin.lock.json"]


def test_last_modified_serves_where_there_is_no_strong_etag(server):
    server.etag, server.modified = 'W/"weak"', "Tue, 01 Jan 2030 00:00:00 GMT"
    fail_with_part(server, 200_000)
    assert fetch(server).read_bytes() == CONTENT
    assert server.requests[0]["If-Range"] == server.modified and server.requests[0]["Range"]


def test_without_a_validator_it_starts_over(server):
    server.etag = None
    fail_with_part(server, 200_000)
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_a_server_that_ignores_ranges(server):
    fail_with_part(server, 200_000)
    server.takes_ranges = False
    assert fetch(server).read_bytes() == CONTENT
    assert len(server.requests) == 1 and server.ranges()[0]


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("change", [b"x" * 409_600, b"y" * 500_000, b"z" * 1000])
def test_a_changed_file_is_not_spliced(server, change, heeds_if_range):
    fail_with_part(server, 200_000)
    server.content, server.etag, server.heeds_if_range = change, '"two"', heeds_if_range
    assert fetch(server).read_bytes() == change


def test_a_part_of_another_url_is_not_continued(server):
    fail_with_part(server, 200_000)
    server.url += "?revision=2"
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_a_whole_part_needs_no_request(server):
    fail_with_part(server, 200_000)
    part().write_bytes(CONTENT)
    assert fetch(server, SHA256).read_bytes() == CONTENT
    assert server.requests == []


def test_a_damaged_description_of_the_part(server):
    fail_with_part(server, 200_000)
    part().with_name("file.bin.part.json").write_text("{")
    assert fetch(server).read_bytes() == CONTENT


def test_busy_server_is_asked_again(server):
    server.status = [503, 429, 500]
    assert fetch(server, SHA256).read_bytes() == CONTENT


def test_it_gives_up_without_progress(server):
    server.status = [503] * 100
    with pytest.raises(
        Error, match="the server answered 503 Service Unavailable. Without a network, get file.bin from"
    ):
        fetch(server)
    assert len(server.requests) == download.ATTEMPTS_WITHOUT_PROGRESS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that has the file, and fails when it is imported."""
    folder = tmp_path / "packages/has_the_file/data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "file.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return download.Package("has_the_file", "data", extra="files")


def test_a_package_is_looked_in_before_the_network(server, package, tmp_path):
    def found():
        return download.fetch("set", "file.bin", server.url, SHA256, package)

    assert found() == tmp_path / "packages/has_the_file/data/file.bin"
    assert server.requests == [] and files() == []
    found().write_bytes(b"another version's")
    assert found() == download.CACHE / "set/file.bin" and found().read_bytes() == CONTENT
    assert len(server.requests) == 1
    (tmp_path / "packages/has_the_file/data/file.bin").write_bytes(CONTENT)
    assert found() == download.CACHE / "set/file.bin"


def test_a_package_that_is_not_installed_is_named():
    package = download.Package("no_such_package", "data", extra="files")
    with pytest.raises(
        Error, match=re.escape("Without a network, install a package that has it: pip install -e '.[files]'; or")
    ):
        download.fetch("set", "file.bin", "http://127.0.0.1:1/file.bin", SHA256, package)


def test_the_package_of_gpt2s_vocabulary():
    """`make test` installs it: all that is published has its published hash there."""
    for name, sha256 in tokenize.GPT2_SHA256.items():
        assert tokenize.GPT2_PACKAGE.find(name, sha256).name == name
        assert tokenize.GPT2_PACKAGE.find(name, "0" * 64) is None


def test_not_found(server):
    server.status = [404]
    with pytest.raises(Error) as error:
        fetch(server)
    assert len(server.requests) == 1
    assert f"the server answered 404 Not Found for {server.url}" in str(error.value)
    assert "put it at data/.cache/set/file.bin or at <folder>/set/file.bin with LLM_MOJO_CACHE=<folder>" in str(
        error.value
    )
    assert files() == []


def test_no_network(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MOJO_CACHE", str(tmp_path / "given"))
    with pytest.raises(Error) as error:
        download.fetch("gpt2", "vocab.bpe", "http://127.0.0.1:1/vocab.bpe")
    assert "Connection refused" in str(error.value)
    assert f"put it at data/.cache/gpt2/vocab.bpe or at {tmp_path}/given/gpt2/vocab.bpe" in str(error.value)


@pytest.mark.parametrize("length", ["abc", "-1", "", "1e3", "9" * 30])
def test_lengths_that_are_none(server, length):
    server.headers = {"Content-Length": length}
    try:
        assert fetch(server, SHA256).read_bytes() == CONTENT
    except Error as error:  # too much, or refused by the library itself
        assert "cannot get" in str(error) or "expected at most 10,000,000,000 bytes, the server has 999" in str(error)


def test_more_than_there_should_be(server):
    """What the server says, and what it sends, both have an end."""
    with pytest.raises(Error, match="expected at most 1,000 bytes, the server has 409,600"):
        download.fetch("set", "file.bin", server.url, SHA256, at_most=1000)
    server.endless, server.headers = True, {"Content-Length": ""}
    with pytest.raises(Error, match="expected at most 1,000,000 bytes, the server sends more"):
        download.fetch("set", "file.bin", server.url, SHA256, at_most=1_000_000)
    assert part().stat().st_size < 2_000_000 and len(server.requests) == 2


def test_a_server_that_sends_a_byte_now_and_then(server, monkeypatch):
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.2)
    server.etag = None
    for length in ("", "1000"):
        server.requests = []
        part().unlink(missing_ok=True)
        server.drips, server.headers = True, {"Content-Length": length}
        with pytest.raises(Error, match="less than 10,000 bytes came in 0.2 seconds"):
            fetch(server)
        assert len(server.requests) == download.ATTEMPTS_WITHOUT_PROGRESS


def test_a_server_that_packs(server):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(Error, match=r"the server packs it \(gzip\)"):
        fetch(server)


@pytest.mark.parametrize("text", ["[1]", '{"url": 3}', "[" * 100_000, '{"validator": "x"}', "null"])
def test_notes_that_say_something_else(server, text):
    fail_with_part(server, 200_000)
    part().with_name("file.bin.part.json").write_text(text)
    part().with_name("file.bin.lock.json").write_text(text)
    assert fetch(server).read_bytes() == CONTENT


def test_a_link_in_the_place_of_the_part(server, tmp_path):
    part().parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    part().symlink_to(tmp_path / "precious")
    with pytest.raises(Error, match="file.bin.part: expected a file of our own to write to, found a symbolic link"):
        fetch(server)
    assert (tmp_path / "precious").read_text() == "precious"


def test_wrong_hash(server):
    with pytest.raises(Error, match=f"expected SHA-256 {'0' * 64} .published., found {SHA256}.*file.bin.wrong"):
        fetch(server, "0" * 64)
    assert files() == ["file.bin.wrong"]
    assert fetch(server, SHA256).read_bytes() == CONTENT
    with pytest.raises(Error, match="published"):
        fetch(server, "0" * 64)
    assert (download.CACHE / "set/file.bin").read_bytes() == CONTENT


def test_hash_is_recorded_at_first_use(server):
    path = fetch(server)
    lock = download.CACHE / "set/file.bin.lock.json"
    assert json.loads(lock.read_text()) == {"url": server.url, "sha256": SHA256, "bytes": len(CONTENT)}
    fetch(server)
    path.unlink()
    server.content, server.etag = b"new", '"new"'
    with pytest.raises(Error, match="recorded at first use in data/.cache/set/file.bin.lock.json; delete that file if"):
        fetch(server)
    lock.unlink()
    assert fetch(server).read_bytes() == b"new"


def test_two_processes_download_once(server):
    server.pause = 0.3
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(server, SHA256).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 3
    assert len(server.requests) == 1


def test_ctrl_c_keeps_the_part(server, tmp_path):
    server.pause = 3600.0
    script = f"""
import sys
from llm_mojo import __main__, datasets
datasets.GITHUB = {server.url!r}
sys.exit(__main__.main(["prepare", "tinyshakespeare", "--tokenizer", "byte"]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    growing = download.CACHE / "tinyshakespeare/input.txt.part"
    wait_for(lambda: growing.exists() and growing.stat().st_size > 100_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors
    assert growing.stat().st_size > 100_000
    assert not any(tmp_path.glob("data/tinyshakespeare/*.bin"))
