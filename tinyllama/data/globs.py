"""Files below a folder, and globs that mean the same in every version of Python."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_TOKENS = re.compile(r"(\*)|(\?)|\[(!?)(\][^]]*|[^]]+)\]|(.)", flags=re.DOTALL)


def name_pattern(glob: str, *, knob: str) -> re.Pattern[str]:
    """What matches the names that a glob means. Python's own globs differ from version to version in links and `**`."""

    def translated(token: re.Match[str]) -> str:
        star, question, negated, members, other = token.groups()
        if members:
            inside = re.sub(r"([][\\^&~|])", r"\\\1", members)
            return f"(?!/)[{'^' if negated else ''}{inside}]"
        return "[^/]*" if star else "[^/]" if question else re.escape(other)

    parts = glob.split("/")
    if any(part in ("", ".", "..") or ("**" in part and part != "**") for part in parts):
        raise ValueError(f"{knob} {glob!r} is no glob below raw: write one such as **/*")
    names = ["(?:[^/]+/)*" if part == "**" else _TOKENS.sub(translated, part) + "/" for part in parts]
    names[-1] = ".+" if parts[-1] == "**" else names[-1].removesuffix("/")
    try:
        return re.compile("".join(names), flags=re.DOTALL)
    except re.error as error:
        raise ValueError(f"{knob} {glob!r} is no glob below raw ({error}): write one such as **/*") from error


HUB_CACHE = ".cache/huggingface"
"""Where huggingface_hub keeps its own notes of what it has fetched into a folder."""


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Whatever is below a folder, but folders, by posix path. ValueError where one cannot be listed."""
    folders = [("", root, frozenset[tuple[int, int]]())]
    while folders:
        below, folder, above = folders.pop()
        try:
            found = folder.stat()
            # a link to a folder above leads to what has a shorter name already
            if (here := (found.st_dev, found.st_ino)) in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if below + entry.name == HUB_CACHE:
                        continue
                    if entry.is_dir():
                        folders.append((f"{below}{entry.name}/", folder / entry.name, above | {here}))
                    else:
                        yield below + entry.name, folder / entry.name
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be listed ({error.strerror}): make it readable") from error
