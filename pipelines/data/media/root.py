"""Files that an untrusted manifest names: nothing outside the media root is read.

Local names are followed through links and `..` to where they lead; in an object store the key
counts. Nothing is ever fetched over http, so that no row makes a worker send requests into your
network.
"""

import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from pipelines.data.media.content import Content
from pipelines.results.storage import locate
from pipelines.text import redacted

MAX_BYTES = 4 << 30  # of one medium from an object store
URI_SCHEMES = {"s3": ("s3",), "gcs": ("gs", "gcs")}  # by type of pyarrow's file system


@dataclass(frozen=True)
class MediaRoot:
    """The folder that contains the media."""

    uri: str = field(repr=False)  # may contain a password
    allow_outside: bool = False  # a trusted manifest may name any file

    def fetch(self, name: str) -> Content:
        """The bytes of a file, or the local file itself. PermissionError if it is outside."""
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not a valid path")
        (system, root), path, label = locate(self.uri), name, redacted(name)
        if "://" in name:
            system, path = self._locate_uri(system, name, label)
        if isinstance(system, fs.LocalFileSystem):
            return self._local_file(Path(os.path.realpath(root)), path, label)
        key = posixpath.normpath(path if "://" in name else posixpath.join(root, path))
        if not self.allow_outside and not key.startswith(root.rstrip("/") + "/"):
            raise self._outside(label)
        with system.open_input_file(key) as stream:
            size = stream.size()
            if size > MAX_BYTES:
                raise ValueError(f"{label} has {size:,} bytes; at most {MAX_BYTES:,} are read")
            data = bytes(stream.read())
        if len(data) != size:
            raise OSError(f"{label} has {size:,} bytes, of which only {len(data):,} arrived")
        return data

    def _local_file(self, root: Path, path: str, label: str) -> Path:
        target = Path(os.path.realpath(root / path))  # through any links
        if not self.allow_outside and not target.is_relative_to(root):
            raise self._outside(label)
        if not target.exists():
            raise FileNotFoundError(f"there is no {label} in {root}")
        if not target.is_file():  # reading a pipe would never end
            raise ValueError(f"{label} is not a file")
        return target

    def _locate_uri(self, system: fs.FileSystem, uri: str, label: str) -> tuple[fs.FileSystem, str]:
        """The file system and path of a URI without options, which could name a server."""
        scheme, _, path = uri.partition("://")
        scheme = scheme.lower()
        if scheme in ("http", "https", "ftp"):
            raise ValueError(
                f"{label}: nothing is fetched over {scheme}; download it and name the file"
            )
        if "?" in path:
            raise ValueError(f"{label}: a URI in a manifest must not have options after a ?")
        if scheme in URI_SCHEMES.get(system.type_name, ()):
            return system, path
        if not self.allow_outside:
            raise self._outside(label)
        return locate(uri)

    def _outside(self, label: str) -> PermissionError:
        return PermissionError(
            f"{label} is outside the media root {redacted(self.uri)}; --media-root names another"
            " root, --allow-outside lets a trusted manifest name any file"
        )
