"""The library's code and prose part cleanly, whatever shares a line with a docstring."""

from __future__ import annotations

import ast
import io
import tokenize

import pytest

from tests.data.layouts import read_documents
from tinyllama.config.data import Source
from tinyllama.data import stdlib
from tinyllama.data.stdlib import cut_docstrings


@pytest.mark.parametrize(
    ("source", "code", "prose"),
    [
        ('"""Doc."""\nimport os\n', "import os\n", "Doc."),
        ('def f():\n    """Doc.\n\n      More.\n    """\n    return 1\n', "def f():\n    return 1\n", "Doc.\n\nMore."),
        ('class A:\n    "Doc."\n', "class A:\n    pass\n", "Doc."),
        ('def f(): "Doc."; return 1\n', "def f(): return 1\n", "Doc."),
        ('def f(): "Doc."\n', "def f(): pass\n", "Doc."),
        ('def f():\n    "Doc."  # why\n    return 1\n', "def f():\n      # why\n    return 1\n", "Doc."),
        ('é = 1\nclass A:\n    "é"; x = "é"\n', 'é = 1\nclass A:\n    x = "é"\n', "é"),
        ('def f():\n    x = "kept"\n    "kept"\n', 'def f():\n    x = "kept"\n    "kept"\n', ""),
        ('async def f():\n    ("a"\n     "b")\n    g()\n', "async def f():\n    g()\n", "ab"),
        ('"Top."\ndef f():\n    "Inner."\n    def g():\n        "Innermost."\n', None, "Top.\n\nInner.\n\nInnermost."),
        ('"No newline"', "", "No newline"),
    ],
)
def test_docstrings_are_cut_out(source: str, code: str | None, prose: str) -> None:
    cut, found = cut_docstrings(source)
    assert found == prose
    assert code is None or cut == code
    ast.parse(cut)


def test_code_holds_no_docstring_and_prose_all() -> None:
    code, prose = stdlib.code(), stdlib.prose()
    assert len(code) > 300 and len(prose) > 300
    for path in list(code)[::10]:
        for node in ast.walk(ast.parse(code[path])):
            assert not isinstance(node, ast.ClassDef | ast.FunctionDef) or ast.get_docstring(node) is None, path
        assert list(tokenize.generate_tokens(io.StringIO(code[path]).readline))
    assert "Serialize ``obj`` to a JSON formatted ``str``." in prose["json/__init__.py"]
    assert "Serialize ``obj`` to a JSON formatted ``str``." not in code["json/__init__.py"]
    assert "def dumps(" in code["json/__init__.py"]


def test_what_is_left_out_is_left_out() -> None:
    paths = stdlib.code().keys() | stdlib.prose().keys()
    for part in ("test", "tests", "site-packages", "dist-packages", "idle_test", "__pycache__"):
        assert not any(part in path.split("/") for path in paths)
    assert not any(path.startswith("pydoc_data") for path in stdlib.code())
    assert "encodings/cp1252.py" not in paths and "encodings/aliases.py" in paths


def test_both_formats_are_sorted_and_topics_follow_the_files() -> None:
    for form, texts in (("stdlib_code", stdlib.code()), ("stdlib_text", stdlib.prose())):
        read = list(read_documents(Source(format=form, weight=1.0)))  # type: ignore[arg-type]
        assert [document.key for document in read] == list(texts)
        files = [document.key for document in read if ":" not in document.key]
        topics = [document.key for document in read if ":" in document.key]
        assert files == sorted(files) and topics == sorted(topics)
        assert all(document.text.strip() for document in read)
    if topics:
        assert "pydoc_data/topics.py:if" in topics


def test_an_unreadable_file_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match=r"broken\.py cannot be read as Python source .*: repair the Python"):
        stdlib._library.__wrapped__()
