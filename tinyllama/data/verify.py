"""Hashing a large data set once, beside the training that it must not hold up."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

from tinyllama.data.manifest import Manifest, write_through

STAMP = ".verified.json"
"""In the data set's folder: hash and time of the last change of every file when all were found whole."""


class Verification(threading.Thread):
    """Hashes every file of a data set, unless it has been found whole since it last changed; `check` says the rest."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        """Nothing is read before `start`."""
        super().__init__(name="verify", daemon=True)
        self._manifest, self._folder = manifest, folder
        self._error: ValueError | OSError | None = None

    def run(self) -> None:
        """Hashes the files; the thread's work."""
        stamp = self._folder / STAMP
        try:
            seen = self._states()  # from before, so that what changes meanwhile is hashed again the next time
            if _stamped(stamp) == seen:
                return
            self._manifest.verify(self._folder)
        except (ValueError, OSError) as error:
            self._error = error
            return
        with suppress(OSError):  # a folder that cannot be written to is hashed each time
            write_through(stamp, json.dumps(seen).encode())

    def check(self) -> None:
        """Raises ValueError where a file has been found missing or changed, OSError where one cannot be read."""
        if self._error is not None:
            raise self._error

    def _states(self) -> dict[str, list[str | int]]:
        found: dict[str, list[str | int]] = {}
        for file, sha256, _ in self._manifest.files():
            if (path := self._folder / file).is_file():
                # not mtime, which a copy can keep, and the stamp with it, without having been read
                found[file] = [sha256, path.stat().st_ctime_ns]
        return found


def _stamped(stamp: Path) -> object:
    """What a stamp says; None where there is none, or where it was cut."""
    try:
        return json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        return None
