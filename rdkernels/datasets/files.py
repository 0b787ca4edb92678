"""Where data lies on a machine: packages that others keep, unpacked or as they were downloaded."""

from __future__ import annotations

import os
import pathlib
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

SYSTEM = ("/usr/share/datasets", "/usr/share/nodejs", "/usr/lib/node_modules", "/usr/local/lib/node_modules")


class MissingData(FileNotFoundError):
    """A package is on none of the folders looked at; the text has the command that fetches it."""


def folders() -> list[pathlib.Path]:
    """Where packages are looked for, in order: `$RDKERNELS_DATA`, the user's cache, the system's folders and Python's.

    The cache is `rdkernels` in `$XDG_CACHE_HOME`, or in `~/.cache`.
    """
    own = os.environ.get("RDKERNELS_DATA")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    python = sysconfig.get_path("purelib")
    return [pathlib.Path(p).expanduser() for p in (*([own] if own else []), f"{cache}/rdkernels", *SYSTEM, python)]


@dataclass(frozen=True)
class Package:
    """Files that somebody else keeps and ships.

    Args:
        name: as its registry has it.
        command: what fetches it.
        places: glob patterns below a folder of `folders()`, for the unpacked files' folder or for an archive (.whl,
            .tgz).
        files: what must be there.
        inside: the folder of an archive that holds the files, with its slash.
    """

    name: str
    command: str
    places: tuple[str, ...]
    files: tuple[str, ...]
    inside: str = ""

    def find(self) -> pathlib.Path:
        """The folder or archive, the first of `folders()`.

        Raises:
            MissingData: with the command that fetches the package.
        """
        for place in self._candidates():
            if place.is_file() or all((place / name).is_file() for name in self.files):
                return place
        raise MissingData(
            f"{self.name} is not on this machine. Fetch it with\n    {self.command}\n"
            f"and, unless the system installs it, set RDKERNELS_DATA to the folder that you fetched it into. "
            f"Looked in {', '.join(str(f) for f in folders())}"
        )

    def read(self, *names: str) -> list[bytes]:
        """The contents of these files.

        Raises:
            MissingData: as `find`.
            ValueError: an archive that is damaged or lacks a file; it says which.
        """
        place = self.find()
        if place.is_dir():
            return [(place / name).read_bytes() for name in names]
        try:
            if place.suffix == ".whl":
                with zipfile.ZipFile(place) as wheel:
                    return [wheel.read(self.inside + name) for name in names]
            with tarfile.open(place, "r:gz") as ball:
                members = [ball.extractfile(self.inside + name) for name in names]
                return [member.read() for member in members if member is not None]
        except (KeyError, EOFError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{place} is not the package {self.name}: {error}; fetch it anew: {self.command}"
            ) from error

    def _candidates(self) -> Iterator[pathlib.Path]:
        for folder in folders():
            for pattern in self.places:
                yield from [folder] if pattern == "." else sorted(folder.glob(pattern))
