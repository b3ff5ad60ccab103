"""Downloads of photo sets, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.errors import ConfigError, DataError, RunFolderError
from models.photos import open_photos
from optimize import photo_sets
from optimize.photo_sets import PHOTO_SETS, PhotoSource, cache_folder, fetch, resolve
from optimize.unpack import unpack


class Server:
    """Serves ``files`` and remembers the Range headers; ``cut`` closes the connection after so many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.ignore_range = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        body = self.files.get(request.path)
        if body is None:
            request.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and not self.ignore_range else 0
        if start >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        request.wfile.write(body[start : start + self.cut] if self.cut else body[start:])


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    it = Server()
    thread = threading.Thread(target=it.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield it
    it.http.shutdown()
    it.http.server_close()
    thread.join()


def photo(shade: int) -> bytes:
    """A small JPEG with colour."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, 90, 30)).save(stream, "JPEG")
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def publish(server: Server, body: bytes, path: str = "/set.zip") -> PhotoSource:
    """Put ``body`` on the server."""
    server.files[path] = body
    return PhotoSource("mine", server.url + path, hashlib.sha256(body).hexdigest())


def test_zip_is_downloaded_checked_unpacked_and_kept(server: Server, tmp_path: Path) -> None:
    body = zipped({"set/a.jpg": photo(200), "set/sub/b.jpg": photo(100), "../evil.jpg": photo(1), "/abs.jpg": photo(2)})
    source = publish(server, body)
    folder = fetch(source, cache=tmp_path / "cache")
    assert open_photos(folder).names == ("set/a.jpg", "set/sub/b.jpg")
    assert [path.name for path in (tmp_path / "cache/photos").iterdir()] == [folder.name]
    assert not list(tmp_path.rglob("evil.jpg"))
    assert fetch(source, cache=tmp_path / "cache") == folder
    assert len(server.ranges) == 1


def test_tgz_without_links_and_by_url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(photo(9))
        archive.addfile(info, io.BytesIO(photo(9)))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = publish(server, stream.getvalue(), "/flowers.tgz")
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))
    folder = resolve(f"{source.url}#sha256={source.sha256.upper()}")
    assert folder.parent == tmp_path / "cache/photos"
    assert [path.name for path in folder.iterdir()] == ["a.jpg"]


def test_wrong_checksum_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    body = zipped({"a.jpg": photo(3)})
    server.files["/set.zip"] = body
    source = PhotoSource("mine", server.url + "/set.zip", "0" * 64)
    digest = hashlib.sha256(body).hexdigest()
    with pytest.raises(DataError, match=f"expected SHA-256 {'0' * 64}, got {digest}; fix: try again"):
        fetch(source, cache=tmp_path)
    assert list((tmp_path / "photos").iterdir()) == []


@pytest.mark.parametrize("ignore_range", [False, True])
def test_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path, ignore_range: bool) -> None:
    source = publish(server, zipped({"a.jpg": photo(3)}))
    server.cut = 100
    with pytest.raises(DataError, match="it goes on where it stopped"):
        fetch(source, cache=tmp_path)
    server.cut, server.ignore_range = None, ignore_range
    assert len(open_photos(fetch(source, cache=tmp_path))) == 1
    assert server.ranges == [None, "bytes=100-"]


def test_leftover_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    body = zipped({"a.jpg": photo(3)})
    source = publish(server, body)
    part = tmp_path / "photos" / f"mine-{source.sha256[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * (len(body) + 5))
    assert len(open_photos(fetch(source, cache=tmp_path))) == 1


def test_missing_file_and_absent_server_say_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the file, got HTTP 404 Not Found; fix: check the network"):
        fetch(PhotoSource("mine", server.url + "/none.zip", "0" * 64), cache=tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DataError, match=r"expected an answer, got .*refused.*download it yourself and pass --data"):
        fetch(PhotoSource("mine", f"http://127.0.0.1:{port}/a.zip", "0" * 64), cache=tmp_path)


def test_no_disk_space_is_said_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = publish(server, zipped({"a.jpg": photo(3)}))
    monkeypatch.setattr(photo_sets.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(RunFolderError, match="got 0 MB free; fix: free disk space, or set PARE_CACHE"):
        fetch(source, cache=tmp_path)


def test_not_an_archive(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a readable archive"):
        fetch(publish(server, b"hello, this is no archive"), cache=tmp_path)
    (tmp_path / "empty.zip").write_bytes(zipped({}))
    with pytest.raises(DataError, match="expected an archive with files, got none"):
        unpack(tmp_path / "empty.zip", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_url_needs_a_checksum(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a checksum behind it.*#sha256=DIGEST"):
        resolve("https://example.org/photos.zip", cache=tmp_path)
    with pytest.raises(ConfigError, match="expected a SHA-256 of 64 digits, got abc"):
        resolve("https://example.org/photos.zip#sha256=abc", cache=tmp_path)
    with pytest.raises(ConfigError, match=r"expected an http\(s\) URL"):
        resolve("ftp://example.org/photos.zip#sha256=" + "0" * 64, cache=tmp_path)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(
        ConfigError, match="photos: expected a folder or the name of a set, got an empty name; fix: check"
    ):
        resolve(" ")


def test_folder_wins_and_unknown_names_get_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "div2k-valid").mkdir()
    assert resolve("div2k-valid") == Path("div2k-valid")
    with pytest.raises(DataError, match="got 'imagenete-160', which does not exist; fix: use 'imagenette-160'"):
        resolve("imagenete-160")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"got 'a.txt', a file"):
        resolve("a.txt")


def test_own_table_of_sets(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish(server, zipped({"a.jpg": photo(3)}))
    table = tmp_path / "sets.yaml"
    table.write_text(f"holiday: {{url: '{source.url}', sha256: '{source.sha256}', licence: mine}}")
    monkeypatch.setenv("PARE_PHOTO_SETS", str(table))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PARE_CACHE", raising=False)
    assert resolve("holiday").parent == tmp_path / "xdg/pare/photos"
    table.write_text("div2k-valid: {url: 'http://a/b.zip', sha256: '" + "0" * 64 + "'}")
    with pytest.raises(ConfigError, match=r"expected new names, got \['div2k-valid'\]"):
        resolve("x")
    table.write_text("holiday: {adress: 'http://a/b.zip'}")
    with pytest.raises(ConfigError, match="expected a table"):
        resolve("x")


def test_built_in_sets_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("~/.cache/pare").expanduser()
    assert len({row.sha256 for row in PHOTO_SETS.values()}) == len(PHOTO_SETS)
    assert all(row.url.startswith("https://") and row.licence and row.about for row in PHOTO_SETS.values())
