"""The embedded corpus: the running Python's standard library, its code and its prose kept apart.

It needs no download, so that a study can run anywhere. Docstrings are cut out of the code and are the prose, so that
neither source can be learned by copying from the other.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import tokenize
from functools import lru_cache
from pathlib import Path

TOPICS = "pydoc_data/topics.py"

# Tests repeat what they test, and installed packages differ from machine to machine. pydoc_data holds the language
# reference as one generated dict: prose, which `prose()` gives entry by entry.
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
)


@lru_cache(maxsize=1)
def code() -> dict[str, str]:
    """Source files without their docstrings, by posix path relative to the library, in sorted order."""
    return {path: text for path, (text, _) in _library().items() if text.strip()}


@lru_cache(maxsize=1)
def prose() -> dict[str, str]:
    """Docstrings, one document a file under the file's path, then the help topics under `pydoc_data/topics.py:NAME`."""
    docstrings = {path: text for path, (_, text) in _library().items() if text.strip()}
    return docstrings | {f"{TOPICS}:{name}": text for name, text in sorted(_topics().items()) if text.strip()}


def cut_docstrings(source: str) -> tuple[str, str]:
    """Python source as (valid source without docstrings, the docstrings joined by blank lines in source order).

    A body that is left empty gets `pass`. Raises SyntaxError where the source does not parse.
    """
    # Positions in the tree are UTF-8 byte offsets.
    raw = source.encode()
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    cuts: list[tuple[int, int, bytes]] = []
    prose: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        expression = node.body[0]
        assert expression.end_lineno is not None and expression.end_col_offset is not None
        start = starts[expression.lineno - 1] + expression.col_offset
        end = starts[expression.end_lineno - 1] + expression.end_col_offset
        needs_body = len(node.body) == 1 and not isinstance(node, ast.Module)
        cuts.append(_widen(raw, start, end, starts[expression.end_lineno], needs_body=needs_body))
        prose.append((start, inspect.cleandoc(docstring)))
    for start, end, body in sorted(cuts, reverse=True):
        raw = raw[:start] + body + raw[end:]
    return raw.decode(), "\n\n".join(text for _, text in sorted(prose) if text)


def _widen(raw: bytes, start: int, end: int, next_line: int, *, needs_body: bool) -> tuple[int, int, bytes]:
    """The span to replace, and by what, so that what shares the docstring's line stays in place."""
    if needs_body:
        return start, end, b"pass"
    after = raw[end:next_line]
    if after.lstrip(b" \t").startswith(b";"):
        rest = after.lstrip(b" \t")[1:].lstrip(b" \t")
        return start, next_line - len(rest), b""
    line = raw.rfind(b"\n", 0, start) + 1
    if not raw[line:start].strip() and not after.strip():
        return line, next_line, b""
    return start, end, b""


@lru_cache(maxsize=1)
def _library() -> dict[str, tuple[str, str]]:
    """Path to (code, prose) of every file, in sorted order. Raises ValueError naming a file that cannot be read."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(_files(root), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        try:
            with tokenize.open(path) as file:
                text = file.read()
            if not _is_table(name, text):
                found[name] = cut_docstrings(text)
        except (SyntaxError, UnicodeDecodeError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as Python source ({error}): repair the Python installation"
            ) from error
    return found


def _topics() -> dict[str, str]:
    """The language reference as `help()` shows it, by topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # Debian's minimal Python leaves them out
        return {}
    return topics


def _files(root: Path) -> list[Path]:
    """Python files under the library's folder, less the folders that are left out."""
    paths = []
    for folder, children, files in os.walk(root):
        children[:] = [name for name in children if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        # _sysconfigdata describes one build of the interpreter, with its folders in it.
        paths += [
            Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return paths


def _is_table(name: str, text: str) -> bool:
    """Whether a file is a generated character map: hex, a seventh of all bytes, nothing to learn."""
    return name.startswith("encodings/") and ("decoding_table" in text or "decoding_map" in text)
