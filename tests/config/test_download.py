"""Downloads from a server on 127.0.0.1: checked, resumed, nothing under the final name until it is whole."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tf_d2.config import DownloadError, download, resolve_weights
from tf_d2.config.download import cache_path, expected_md5, fetch

BODY = bytes(range(256)) * 4000
NAME = f"model_final_{hashlib.md5(BODY, usedforsecurity=False).hexdigest()[:6]}.pkl"


class Server:
    """Serves BODY at every path; ``plan`` says how many bytes each further request gets before it is cut."""

    def __init__(self):
        self.requests: list[str | None] = []
        self.paths: list[str] = []
        self.plan: list[int] = []
        self.ranges = True
        self.status = 200
        self.body = BODY
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        self.paths.append(handler.path)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if self.status != 200 or start > len(self.body) or (wanted and start == len(self.body)):
            handler.send_error(self.status if self.status != 200 else 416)
            return
        body = self.body[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.plan.pop(0)] if self.plan else body)
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "detectron2"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_fetches_once(server, tmp_path):
    url = f"{server.url}/a/b/{NAME}"
    path = fetch(url, progress=False)
    assert path.read_bytes() == BODY
    assert path == cache_path(url) and path.is_relative_to(tmp_path / "cache")
    assert fetch(url, progress=False) == resolve_weights(url, progress=False) == path
    assert fetch(url + "?matching_heuristics=True", progress=False) == path
    assert server.requests == [None]
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize(
    "place",
    [
        "/s/x/model_final.pth?dl=1",
        "/uc?export=download&id=A",
        "/model_final.pth?X-Amz-Signature=1%2F2&b=",
        "/model.pth?a=1&matching_heuristics=True&b=2#part",
    ],
)
def test_a_query_is_a_part_of_the_address(server, place):
    path = fetch(server.url + place, progress=False)
    assert path.read_bytes() == BODY
    assert server.paths == [place.replace("matching_heuristics=True&", "").partition("#")[0]]
    assert fetch(server.url + place, progress=False) == path and len(server.paths) == 1


def test_two_ids_are_two_files(server):
    one = fetch(f"{server.url}/uc?export=download&id=A", progress=False)
    server.body = BODY[::-1]
    other = fetch(f"{server.url}/uc?export=download&id=B", progress=False)
    assert (one.read_bytes(), other.read_bytes()) == (BODY, BODY[::-1])
    assert one != other and len(server.paths) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<!DOCTYPE html><html><body>Virus scan warning</body></html>", "a web page"),
        (b'{"error": "login required"}', "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
    ],
)
def test_a_page_is_refused_and_not_kept(server, tmp_path, body, message):
    server.body = body
    for _ in range(2):
        with pytest.raises(DownloadError, match=f"what arrived is {message}.*Nothing was kept"):
            fetch(f"{server.url}/model_final.pth", progress=False)
    assert len(server.paths) == 2
    assert "model_final.pth" not in files(tmp_path)
    cached = cache_path(f"{server.url}/model_final.pth")  # as older versions kept it
    cached.write_bytes(b"<html></html>")
    server.body = BODY
    assert fetch(f"{server.url}/model_final.pth", progress=False).read_bytes() == BODY


def test_the_note_on_matching_of_a_local_file(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    assert resolve_weights(f"{tmp_path}/model.pth?matching_heuristics=True") == tmp_path / "model.pth"
    assert download.split_matching("a.pth?matching_heuristics=True") == ("a.pth", True)
    assert download.split_matching("a.pth?matching_heuristics=False") == ("a.pth", False)
    assert download.split_matching("https://h/a?x=1") == ("https://h/a?x=1", False)
    (tmp_path / "odd?name.pth").write_bytes(b"x")
    assert resolve_weights(tmp_path / "odd?name.pth") == tmp_path / "odd?name.pth"
    with pytest.raises(DownloadError, match="no such file"):
        resolve_weights(f"{tmp_path}/absent.pth?matching_heuristics=True")


def test_continues_where_the_connection_broke(server, tmp_path):
    server.plan = [300_000, 500_000]
    assert fetch(f"{server.url}/{NAME}", progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=300000-", "bytes=800000-"]
    assert files(tmp_path) == [NAME]


def test_continues_in_a_later_run(server, tmp_path):
    url = f"{server.url}/{NAME}"
    server.plan = [100_000, 0, 0]
    with pytest.raises(DownloadError, match=r"broke off 3 times.*100000 of 1024000.*again to continue"):
        fetch(url, progress=False)
    assert files(tmp_path) == [NAME + ".part"]
    assert fetch(url, progress=False).read_bytes() == BODY
    assert server.requests[-1] == "bytes=100000-"


def test_starts_again_where_the_server_cannot_continue(server):
    server.ranges = False
    server.plan = [300_000]
    assert fetch(f"{server.url}/{NAME}", progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=300000-"]


def test_starts_again_after_a_part_that_is_too_long(server):
    url = f"{server.url}/{NAME}"
    part = cache_path(url).with_name(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY + b"more")
    assert fetch(url, progress=False).read_bytes() == BODY


def test_a_part_of_another_file_is_found_out(server, tmp_path):
    url = f"{server.url}/{NAME}"
    part = cache_path(url).with_name(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another file")
    with pytest.raises(DownloadError, match="what arrived is not this file"):
        fetch(url, progress=False)
    assert files(tmp_path) == []
    assert fetch(url, progress=False).read_bytes() == BODY


def test_names_without_a_digest_are_not_continued(server, tmp_path):
    server.plan = [300_000]
    assert fetch(f"{server.url}/R-50.pkl", progress=False).read_bytes() == BODY
    assert server.requests == [None, None]
    server.plan = [300_000] * 3
    with pytest.raises(DownloadError, match="broke off"):
        fetch(f"{server.url}/R-101.pkl", progress=False)
    assert files(tmp_path) == ["R-50.pkl"]


def test_a_wrong_digest(server, tmp_path):
    with pytest.raises(DownloadError, match=r"starts with 000000, it is [0-9a-f]{32}.*Fetch it by hand"):
        fetch(f"{server.url}/model_final_000000.pkl", progress=False)
    assert files(tmp_path) == []


def test_an_empty_file(server, tmp_path):
    server.body = b""
    with pytest.raises(DownloadError, match="sent an empty file"):
        fetch(f"{server.url}/R-50.pkl", progress=False)
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_answers_of_the_server(server, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError, match=f"the server answered {status}") as caught:
        fetch(f"{server.url}/{NAME}", progress=False)
    assert str(cache_path(f"{server.url}/{NAME}")) in str(caught.value)
    assert files(tmp_path) == []


def test_no_network(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    with pytest.raises(DownloadError, match="Fetch it by hand") as caught:
        fetch(url, progress=False)
    assert url in str(caught.value) and str(cache_path(url)) in str(caught.value)
    assert files(tmp_path) == []
    cache_path(url).write_bytes(b"put there by hand")
    assert fetch(url, progress=False).read_bytes() == b"put there by hand"


def test_a_server_that_stops_talking(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(DownloadError, match="Fetch it by hand"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}", progress=False)


def test_a_server_that_speaks_something_else(server):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            connection, _address = other.accept()
            connection.recv(1000)
            connection.sendall(b"220 welcome to mail\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(DownloadError, match="Fetch it by hand"):
            fetch(f"http://127.0.0.1:{other.getsockname()[1]}/{NAME}", progress=False)
        thread.join()


def test_detectron2s_cache_is_used_if_the_digest_fits(server, tmp_path):
    url = f"{server.url}/detectron2/x/{NAME}"
    theirs = tmp_path / "detectron2/detectron2/x" / NAME
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(BODY)
    assert fetch(url, progress=False) == theirs
    assert server.requests == []
    theirs.write_bytes(b"broken")
    assert fetch(url, progress=False) == cache_path(url)


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TF_D2_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot be kept in .*set TF_D2_CACHE"):
        fetch(f"{server.url}/{NAME}", progress=False)


def test_paths_stay_below_the_cache(server, tmp_path):
    for url in ("https://host/../../etc/passwd", "https://host/a/..//./b:c?d=/../e", "https://h/%2e%2e/x"):
        assert cache_path(url).resolve().is_relative_to((tmp_path / "cache").resolve())
    with pytest.raises(DownloadError, match="names no file"):
        cache_path("https://host/")


def test_two_at_once_fetch_once(server):
    url = f"{server.url}/{NAME}"
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(url, progress=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1
    assert results[0].read_bytes() == BODY
    assert server.requests == [None]


def test_progress_bar(server, capsys):
    assert fetch(f"{server.url}/{NAME}").read_bytes() == BODY
    assert capsys.readouterr().out == ""  # standard output belongs to results


def test_digests_in_names(tmp_path):
    assert expected_md5(tmp_path / "model_final_280758.pkl") == "280758"
    assert expected_md5(tmp_path / "model_0039999_e76410.pkl") == "e76410"
    assert expected_md5(tmp_path / "R-50.pkl") is None
    assert expected_md5(tmp_path / "model_final_XYZ123.pkl") is None


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_D2_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_dir() == tmp_path / "tf_d2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_dir() == tmp_path / ".cache/tf_d2"
