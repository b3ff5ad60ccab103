"""Photo sources of ``--data``: a folder, a named public set, or ``URL#sha256=...``; downloads are checked and kept.

A download goes to ``$PARE_CACHE`` (else ``$XDG_CACHE_HOME/pare``, else ``~/.cache/pare``), continues where an earlier
one broke off, is compared with its SHA-256, and only then unpacked. More sets can be named in a YAML file that
``PARE_PHOTO_SETS`` points to: ``name: {url: ..., sha256: ..., licence: ...}``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from models.errors import ConfigError, DataError, RunFolderError, explain, nearest
from models.progress import NULL_PROGRESS, Progress
from optimize.unpack import unpack

if TYPE_CHECKING:
    from http.client import HTTPResponse

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class PhotoSource:
    """A photo set on the network.

    Attributes:
        name: What ``--data`` calls it.
        url: A .zip, .tar, .tar.gz or .tgz, over http or https.
        sha256: Of that file, 64 hexadecimal digits.
        licence: Terms of the photos, as their publisher states them.
        about: What is in it.
    """

    name: str
    url: str
    sha256: str
    licence: str = "unstated"
    about: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            fix = "give the address of a .zip or .tgz"
            raise ConfigError(explain(f"photo set {self.name!r}", expected="an http(s) URL", got=self.url, fix=fix))
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            fix = "compute it with sha256sum FILE"
            got = self.sha256 or "none"
            raise ConfigError(explain(f"photo set {self.name!r}", expected="a SHA-256 of 64 digits", got=got, fix=fix))


#: Checksums: TensorFlow Datasets (url_checksums), which downloads the same files.
_ROWS = (
    PhotoSource(
        "imagenette-160",
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
        "88daccb09b6fce93f45e6c09ddeb269cce705549e6bff322092a2a5a11489863",
        "ImageNet terms: research",
        "13,394 photos of ten classes, short side 160, 99 MB",
    ),
    PhotoSource(
        "imagenette-320",
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        "5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e",
        "ImageNet terms: research",
        "13,394 photos of ten classes, short side 320, 342 MB",
    ),
    PhotoSource(
        "flowers-102",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
        "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
        "unstated; for research",
        "8,189 photos of flowers, short side 500, 345 MB",
    ),
    PhotoSource(
        "clic-2020-professional-valid",
        "https://data.vision.ee.ethz.ch/cvl/clic/professional_valid_2020.zip",
        "00be38092ade2ab5163b65f7f6523d46c7bca147007f559adbb02c0afc236b7d",
        "Unsplash licence",
        "41 photos of about 2 megapixels, 135 MB",
    ),
    PhotoSource(
        "div2k-valid",
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
        "academic research",
        "100 photos, 2K, 449 MB",
    ),
    PhotoSource(
        "div2k-train",
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
        "academic research",
        "800 photos, 2K, 3.5 GB",
    ),
)

PHOTO_SETS: Mapping[str, PhotoSource] = {row.name: row for row in _ROWS}


def photo_sets() -> dict[str, PhotoSource]:
    """Return the built-in sets and those of the file that ``PARE_PHOTO_SETS`` names.

    Raises:
        ConfigError: The file cannot be read, or a row of it is wrong.
    """
    path = os.environ.get("PARE_PHOTO_SETS")
    if not path:
        return dict(PHOTO_SETS)
    import yaml

    try:
        rows = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        own = {str(name): PhotoSource(str(name), **row) for name, row in rows.items()}
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        fix = "write rows such as `mine: {url: https://..., sha256: ...}`"
        raise ConfigError(explain(f"PARE_PHOTO_SETS={path}", expected="a table", got=error, fix=fix)) from error
    taken = own.keys() & PHOTO_SETS.keys()
    if taken:
        fix = "name it differently"
        raise ConfigError(explain(f"PARE_PHOTO_SETS={path}", expected="new names", got=sorted(taken), fix=fix))
    return {**PHOTO_SETS, **own}


def resolve(source: str, *, cache: Path | None = None, progress: Progress = NULL_PROGRESS) -> Path:
    """Return the folder behind a ``--data`` value; what is on the network is downloaded first.

    An existing folder wins over a named set of the same name.

    Raises:
        ConfigError: A URL without checksum, or an empty name.
        DataError: No such folder or set, or the download failed.
    """
    if not source.strip():
        fix = "check the variable that it came from, or leave the flag out for the sample photos"
        raise ConfigError(explain("photos", expected="a folder or the name of a set", got="an empty name", fix=fix))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if "://" in source:
        return fetch(_from_url(source), cache=cache, progress=progress)
    known = photo_sets()
    if source in known:
        return fetch(known[source], cache=cache, progress=progress)
    close = nearest(source, known)
    fix = f"use {close!r}" if close else "check the path, or use one of " + ", ".join(sorted(known))
    got = f"{source!r}, a file" if folder.exists() else f"{source!r}, which does not exist"
    raise DataError(explain("photos", expected="a folder, a named set, or URL#sha256=...", got=got, fix=fix))


def cache_folder() -> Path:
    """Return where downloads are kept."""
    own = os.environ.get("PARE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pare"


def fetch(source: PhotoSource, *, cache: Path | None = None, progress: Progress = NULL_PROGRESS) -> Path:
    """Download, check and unpack ``source`` unless that was done before; return the folder of its files.

    Raises:
        DataError: No network, an HTTP error, another checksum, or an archive that cannot be unpacked.
        RunFolderError: The disk is full or the cache cannot be written.
    """
    home = (cache or cache_folder()) / "photos"
    folder = home / f"{_slug(source.name)}-{source.sha256[:12]}"
    if folder.is_dir():
        return folder
    part = folder.with_name(folder.name + ".part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        _download(source, part, progress)
        _check(source, part)
        progress.note(f"Unpacking {source.name} ({source.licence})")
        unpack(part, folder)
        part.unlink()
    except OSError as error:
        fix = "free disk space, or set PARE_CACHE to another folder"
        raise RunFolderError(explain(f"cache {home}", expected="a writable folder", got=error, fix=fix)) from error
    return folder


def _from_url(text: str) -> PhotoSource:
    url, _, fragment = text.partition("#")
    key, _, digest = fragment.partition("=")
    if key != "sha256":
        fix = f"write {url}#sha256=DIGEST, with the digest that the publisher states"
        raise ConfigError(explain("photo URL", expected="a checksum behind it", got=repr(text), fix=fix))
    return PhotoSource(Path(urlsplit(url).path).stem or "photos", url, digest.lower())


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _check(source: PhotoSource, path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != source.sha256:
        path.unlink()
        fix = "try again; if it stays, the file at that address was changed: do not use it"
        got = digest.hexdigest()
        raise DataError(explain(f"{source.url}", expected=f"SHA-256 {source.sha256}", got=got, fix=fix))


def _download(source: PhotoSource, part: Path, progress: Progress) -> None:
    """Write ``source`` to ``part``, going on from what is there."""
    import http.client
    import urllib.error

    fix = (
        "check the network and run again (it goes on where it stopped), or download it yourself and pass --data FOLDER"
    )
    try:
        with _open(source.url, part) as response:
            _receive(source, response, part, progress)
    except urllib.error.HTTPError as error:
        got = f"HTTP {error.code} {error.reason}"
        raise DataError(explain(source.url, expected="the file", got=got, fix=fix)) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataError(explain(source.url, expected="an answer", got=reason or repr(error), fix=fix)) from error


def _open(url: str, part: Path) -> Any:
    import urllib.error
    import urllib.request

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "pare"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # more than the server has: not this file
        return _open(url, part)


def _receive(source: PhotoSource, response: HTTPResponse, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() and response.status == 206 else 0
    length = response.headers.get("Content-Length")
    total = int(length) if length else None
    if total is not None and shutil.disk_usage(part.parent).free < 2 * total:
        fix = "free disk space, or set PARE_CACHE to another folder"
        got = f"{shutil.disk_usage(part.parent).free / 1e6:.0f} MB free"
        message = explain(f"download of {source.name}", expected=f"{2 * total / 1e6:.0f} MB", got=got, fix=fix)
        raise RunFolderError(message)
    megabytes = (total + have) / 1e6 if total is not None else None
    with progress.track(f"Downloading {source.name} (MB)", megabytes) as bar, part.open("ab" if have else "wb") as out:
        bar.advance(have / 1e6)
        while chunk := response.read(_CHUNK):
            out.write(chunk)
            bar.advance(len(chunk) / 1e6)
            total = None if total is None else total - len(chunk)
    if total:
        raise ConnectionError(f"the connection closed {total} bytes early")
