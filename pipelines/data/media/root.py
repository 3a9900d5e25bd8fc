"""The bytes behind a name in a manifest, which is not trusted: nothing outside the media root is read.

Local names are followed through links and `..` to where they really lead; of an object store the key counts. Nothing is
ever fetched over http, so that no row makes a worker ask an address of your network.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from pipelines.data.formats.base import locate
from pipelines.data.media.content import Content
from pipelines.text import redacted

LARGEST = 4 << 30  # bytes of one medium from an object store
REMOTE = {"s3": ("s3",), "gcs": ("gs", "gcs")}  # the schemes of pyarrow's file systems


@dataclass(frozen=True)
class Root:
    """A folder that media are in."""

    uri: str = field(repr=False)  # can hold a password
    allow_outside: bool = False  # a manifest that is trusted may name any file

    def fetch(self, name: str) -> Content:
        """The bytes of a file, or the local file itself. PermissionError for what lies outside."""
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is no path")
        (system, root), path, shown = locate(self.uri), name, redacted(name)
        if "://" in name:
            system, path = self._elsewhere(system, name)
        if isinstance(system, fs.LocalFileSystem):
            base = os.path.realpath(root)
            target = Path(
                os.path.realpath(os.path.join(base, path))
            )  # whatever links it goes through
            if not self.allow_outside and not target.is_relative_to(base):
                raise self._outside(shown)
            if not target.exists():
                raise FileNotFoundError(f"there is no {shown} in {base}")
            if not target.is_file():
                raise ValueError(f"{shown} is no file")  # a pipe would never end
            return target
        key = posixpath.normpath(path if "://" in name else posixpath.join(root, path))
        if not self.allow_outside and not key.startswith(root.rstrip("/") + "/"):
            raise self._outside(shown)
        with system.open_input_file(key) as stream:
            size = stream.size()
            if size > LARGEST:
                raise ValueError(f"{shown} has {size:,} bytes; at most {LARGEST:,} are read")
            data = bytes(stream.read())
        if len(data) != size:
            raise OSError(f"{shown} has {size:,} bytes and {len(data):,} came")
        return data

    def _elsewhere(self, system: fs.FileSystem, uri: str) -> tuple[fs.FileSystem, str]:
        """The file system and path of a URI in a manifest; its options, which could name a server, are not followed."""
        scheme, _, rest = uri.partition("://")
        scheme = scheme.lower()
        if scheme in ("http", "https", "ftp"):
            raise ValueError(
                f"{redacted(uri)}: nothing is fetched over {scheme}; download it and name the file"
            )
        if "?" in rest:
            raise ValueError(
                f"{redacted(uri)}: a URI in a manifest has no options after a question mark"
            )
        if scheme in REMOTE.get(system.type_name, ()):
            return system, rest
        if not self.allow_outside:
            raise self._outside(redacted(uri))
        return locate(uri)

    def _outside(self, name: str) -> PermissionError:
        return PermissionError(
            f"{name} is outside the media root {redacted(self.uri)}; --media-root names another root,"
            " --allow-outside lets a manifest that you trust name any file"
        )
