"""Raw files come from a hub on this machine, through huggingface_hub's own code: what is wanted, once, and whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import constants  # noqa: E402
from huggingface_hub.utils import filter_repo_objects  # noqa: E402

from tinyllama.config.data import Data, Source  # noqa: E402
from tinyllama.config.data import Tokenizer as Spec  # noqa: E402
from tinyllama.config.schema import RunConfig  # noqa: E402
from tinyllama.data.download import chosen, download, hub_patterns  # noqa: E402
from tinyllama.data.formats import raw_files  # noqa: E402

COMMIT, OTHER = "c0" * 20, "d1" * 20
FILES = {
    ".gitattributes": b"*.zst filter=lfs\n",
    "README.md": b"# a data set",
    "train/chunk1/a.jsonl": b'{"text": "one"}\n' * 500,
    "train/chunk1/b.jsonl": b'{"text": "two"}\n',
    "train/chunk2/odd [1] é.jsonl": b'{"text": "three"}\n',
    "train/chunk2/deep/c.jsonl": b'{"text": "four"}\n',
    "train/notes/a.jsonl": b'{"other": "five"}\n',
    "validation/v.jsonl": b'{"text": "six"}\n',
    "test/t.jsonl": b'{"text": "seven"}\n',
}
PAGE = 4
"""Files on a page of the hub's listing."""


def oid(content: bytes) -> str:
    """What the hub knows a content by; Python works it out once for each bytes object."""
    return f"{hash(content) % 2**160:040x}"


class Hub(ThreadingHTTPServer):
    """A hub with one data set, `owner/set`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = dict(FILES)
        self.fetched: list[str] = []
        """Files that were asked for with their content."""
        self.refuse: dict[str, tuple[int, str]] = {}
        """Status and error code by what the path begins with."""
        self.stall: str | None = None
        """A file of which only half is sent, and then nothing."""
        self.stalled = threading.Event()
        self.go_on = threading.Event()


class Request(BaseHTTPRequestHandler):
    """What snapshot_download asks: the commit, the listing, and each file's head and content."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.server, urlsplit(self.path)
        path = unquote(url.path)
        for start, (status, code) in hub.refuse.items():
            if f"{self.command} {path}".startswith(start):
                return self.answer(status, **({"X_Error_Code": code} if code else {}))
        if path in ("/api/datasets/owner/set", "/api/datasets/owner/set/revision/v1"):
            sha = OTHER if path.endswith("v1") else COMMIT
            return self.answer(200, json.dumps({"id": "owner/set", "sha": sha}).encode())
        if path.startswith("/api/datasets/owner/set/revision/"):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if path in (f"/api/datasets/owner/set/tree/{commit}" for commit in (COMMIT, OTHER)):
            start = int(parse_qs(url.query).get("cursor", ["0"])[0])
            listed: list[dict[str, object]] = [
                {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                for name, content in hub.files.items()
            ]
            listed.insert(1, {"type": "directory", "path": "train", "oid": "0" * 40})
            more = {"Link": f'<{hub.url}{path}?cursor={start + PAGE}>; rel="next"'} if listed[start + PAGE :] else {}
            return self.answer(200, json.dumps(listed[start : start + PAGE]).encode(), **more)
        for commit in (COMMIT, OTHER):
            name = path.removeprefix(f"/datasets/owner/set/resolve/{commit}/")
            if name in hub.files:
                content = hub.files[name]
                headers = {"ETag": f'"{oid(content)}"', "X_Repo_Commit": commit}
                if self.command == "GET":
                    hub.fetched.append(name)
                    if name == hub.stall:
                        self.send_response(200)
                        self.send_header("Content-Length", str(len(content)))
                        self.end_headers()
                        self.wfile.write(content[: len(content) // 2])
                        hub.stalled.set()
                        hub.go_on.wait(20)
                        self.close_connection = True
                        return None
                return self.answer(200, content, **headers)
        return self.answer(404, X_Error_Code="RepoNotFound")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub asks instead of the real one, with no user and no cache."""
    hub = Hub()
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.close_session()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    huggingface_hub.close_session()
    hub.go_on.set()
    hub.shutdown()
    hub.server_close()
    thread.join()
    huggingface_hub.utils.enable_progress_bars()


def data_of(raw: Path, **knobs: object) -> Data:
    """A data section with the hub's data set, and a source that is on none."""
    wanted = {
        "hub": "owner/set",
        "include": ("train/chunk*/*.jsonl", "train/**/c.jsonl"),
        "exclude": ("*/*/b.jsonl",),
        "held_out_include": ("validation/*",),
    }
    return Data(
        name="hubbed",
        tokenizer=Spec(model=None, sha256=None, vocab_size=300, sample_bytes=20_000),
        sources={
            "here": Source(format="text", weight=1.0, raw="/nowhere"),
            "web": Source(format="jsonl", weight=1.0, raw=str(raw), **(wanted | knobs)),  # type: ignore[arg-type]
        },
    )


WANTED = [
    "train/chunk1/a.jsonl",
    "train/chunk2/deep/c.jsonl",
    "train/chunk2/odd [1] é.jsonl",
    "validation/v.jsonl",
]


def held(raw: Path) -> dict[str, bytes]:
    """What lies in a raw folder, but for the library's notes."""
    files = (path for path in raw.rglob("*") if path.is_file())
    found = {path.relative_to(raw).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith(".cache/huggingface/")}


def fetch(data: Data) -> list[str]:
    lines: list[str] = []
    download(data, report=lines.append)
    return lines


def test_what_is_included_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", data_of(tmp_path / "raw")
    hub.files["train/chunk1/a.jsonl"] = bytes(123_000_000)
    assert fetch(data) == [f"web: 4 files, 0.1 GB, of owner/set at {COMMIT} into {raw}"]
    assert held(raw) == {name: hub.files[name] for name in WANTED}
    assert sorted(hub.fetched) == WANTED
    assert [file.name for file in raw_files(data.sources["web"])] == WANTED
    hub.fetched.clear()
    fetch(data)
    assert hub.fetched == [] and sorted(held(raw)) == WANTED


def test_a_revision_is_its_commit(hub: Hub, tmp_path: Path) -> None:
    assert fetch(data_of(tmp_path / "raw", revision="v1")) == [
        f"web: 4 files, 0.0 GB, of owner/set at {OTHER} into {tmp_path / 'raw'}"
    ]
    assert sorted(held(tmp_path / "raw")) == WANTED


def test_a_newer_revision_fetches_what_has_changed(hub: Hub, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    fetch(data_of(raw))
    hub.fetched.clear()
    hub.files["validation/v.jsonl"] = b'{"text": "changed"}\n'
    fetch(data_of(raw, revision="v1"))
    assert hub.fetched == ["validation/v.jsonl"] and held(raw)["validation/v.jsonl"] == hub.files["validation/v.jsonl"]


def test_a_file_that_was_cut_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    fetch(data_of(raw))
    hub.fetched.clear()
    path = raw / "train/chunk1/a.jsonl"
    state = path.stat()
    os.truncate(path, 99)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**10))
    (raw / "validation/v.jsonl").unlink()
    fetch(data_of(raw))
    assert sorted(hub.fetched) == ["train/chunk1/a.jsonl", "validation/v.jsonl"]
    assert held(raw) == {name: FILES[name] for name in WANTED}


def test_what_was_cut_with_its_time_kept_is_told(hub: Hub, tmp_path: Path) -> None:
    # huggingface_hub goes by the time
    raw = tmp_path / "raw"
    fetch(data_of(raw))
    path = raw / "train/chunk1/a.jsonl"
    state = path.stat()
    os.truncate(path, 99)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(OSError, match=r"train/chunk1/a\.jsonl is not there with its 8,000 bytes"):
        fetch(data_of(raw))


def test_a_download_that_was_killed_goes_on(hub: Hub, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    hub.stall = "validation/v.jsonl"
    code = "import sys, pathlib, tests.data.test_download as t; t.fetch(t.data_of(pathlib.Path(sys.argv[1])))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(raw)], env=environment, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert hub.stalled.wait(20)
        others = [raw / name for name in WANTED if name != hub.stall]
        for _ in range(2000):
            if all(path.is_file() for path in others):
                break
            threading.Event().wait(0.01)
    finally:
        process.kill()
        process.communicate()
    assert sorted(held(raw)) == [name for name in WANTED if name != hub.stall]
    hub.fetched.clear()
    hub.stall = None
    fetch(data_of(raw))
    assert "validation/v.jsonl" in hub.fetched and held(raw) == {name: FILES[name] for name in WANTED}
    assert len(hub.fetched) < len(WANTED)


def test_a_file_that_the_hub_does_not_give_is_told_and_the_rest_kept(hub: Hub, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    hub.refuse = {f"GET /datasets/owner/set/resolve/{COMMIT}/validation": (500, "")}
    says = r"data\.sources\.web\.hub: owner/set was not fetched whole \(.*\): the same command goes on with the files"
    with pytest.raises(OSError, match=says):
        fetch(data_of(raw))
    hub.refuse = {}
    hub.fetched.clear()
    fetch(data_of(raw))
    assert "validation/v.jsonl" in hub.fetched and held(raw) == {name: FILES[name] for name in WANTED}


REFUSALS = {
    "gated": ("GET /api/datasets/owner/set", 403, "GatedRepo"),
    "gated, nobody logged in": ("GET /api/datasets/owner/set", 401, "GatedRepo"),
    "gated, but for its listing": ("HEAD /datasets/owner/set", 403, "GatedRepo"),
    "unknown": ("GET /api/datasets/owner/set", 404, "RepoNotFound"),
    "unknown, nobody logged in": ("GET /api/datasets/owner/set", 401, "RepoNotFound"),
    "unknown by its listing": ("GET /api/datasets/owner/set/tree", 404, "RepoNotFound"),
    "a token that has expired": ("GET /api/datasets/owner/set", 401, ""),
    "a token for other data sets": ("HEAD /datasets/owner/set", 403, ""),
}


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_does_not_let_us_have_is_refused(hub: Hub, tmp_path: Path, case: str, filled: bool) -> None:
    raw = tmp_path / "raw"
    if filled:  # which snapshot_download takes for the data set
        (raw / "train").mkdir(parents=True)
        (raw / "train" / "x.jsonl").write_text("{}")
    start, status, code = REFUSALS[case]
    hub.refuse = {start: (status, code)}
    gated = r"data\.sources\.web\.hub: owner/set is gated: accept its terms on its page, then log in \(hf auth login\)"
    unknown = (
        r"data\.sources\.web\.hub: there is no owner/set at revision main, or not for this user: correct it, or log in "
        r"\(hf auth login\)"
    )
    with pytest.raises(ValueError, match=f"^{gated if case.startswith('gated') else unknown}$"):
        fetch(data_of(raw))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"revision": "v9"}, r"\.hub: there is no owner/set at revision v9, or not for this user"),
        ({"hub": "owner/other"}, r"\.hub: there is no owner/other at revision main"),
        ({"hub": "a/b/c"}, r"\.hub: there is no a/b/c at revision main"),
        ({"include": ("tra1n/*",)}, r": no file of owner/set matches include 'tra1n/\*': correct hub or include"),
        (
            {"held_out_include": ("test/*", "nothing")},
            r": no file of owner/set matches held_out_include 'nothing': correct hub or held_out_include",
        ),
        ({"exclude": ("**/*",)}, r": no file of owner/set matches include 'train/chunk\*/\*\.jsonl'"),
        ({"exclude": ("../x",)}, r": exclude '\.\./x' is no glob below raw"),
    ],
)
def test_what_is_not_there_is_refused(hub: Hub, tmp_path: Path, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.sources\.web{says}"):
        fetch(data_of(tmp_path / "raw", **knobs))
    assert not (tmp_path / "raw").exists() and hub.fetched == []


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_a_hub_that_does_not_answer_is_told(hub: Hub, tmp_path: Path, filled: bool) -> None:
    if filled:
        fetch(data_of(tmp_path / "raw"))
    hub.refuse = {"GET /api": (500, "")}
    says = r"^data\.sources\.web\.hub: owner/set was not fetched whole \(.*\): the same command goes on with the files"
    with pytest.raises(OSError, match=says):
        fetch(data_of(tmp_path / "raw"))
    hub.shutdown()
    hub.server_close()
    with pytest.raises(OSError, match=says):
        fetch(data_of(tmp_path / "raw"))


def test_a_missing_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"^huggingface_hub is not installed: pip install 'tinyllama\[hub\]'$"):
        fetch(data_of(tmp_path))


def by_the_hub(names: list[str], source: Source) -> list[str]:
    """What snapshot_download would take."""
    allow, ignore = hub_patterns(names, source=source)
    return sorted(filter_repo_objects(names, allow_patterns=allow, ignore_patterns=ignore))


def test_the_hub_takes_what_raw_files_will_find(tmp_path: Path) -> None:
    draw = random.Random(0)
    folders, ends = ("a", "b", "ab", "a.b", ".a", "a-b", "[a]", "x*", "é", "?"), (".x", ".y")
    made = ("/".join(draw.choices(folders, k=draw.randrange(1, 5))) + draw.choice(ends) for _ in range(150))
    names = sorted({*made})
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def globs(least: int, most: int) -> tuple[str, ...]:
        words = ("a", "b", "*", "*b", "a*", "?", "??", "[ab]", "[!a]", "[[]a]", "**", "**", "a?b", ".*", "x[*]")
        last = ("*", "**", "*.x", "?.y", "a*", "[!b]*.?")
        count = draw.randrange(least, most)
        return tuple("/".join([*draw.choices(words, k=draw.randrange(3)), draw.choice(last)]) for _ in range(count))

    found, differed = 0, 0
    for _ in range(600):
        include, exclude, held_out = globs(1, 3), globs(0, 3), globs(0, 2)
        source = Source(
            format="text", weight=1, raw=str(tmp_path), include=include, exclude=exclude, held_out_include=held_out
        )
        try:
            expected = [file.name for file in raw_files(source)]
        except ValueError:  # a glob finds nothing, or only what is held out
            continue
        assert sorted(chosen(names, source=source)) == expected == by_the_hub(names, source)
        found += 1
        # with the globs as they are
        wrong = filter_repo_objects(names, allow_patterns=[*include, *held_out], ignore_patterns=[*exclude])
        differed += sorted(wrong) != expected
    assert found > 100 and differed > 50


PUBLISHED = {
    "slimpajama": [
        *(f"train/chunk{i}/example_train_{j}.jsonl.zst" for i in (1, 10) for j in range(3)),
        *(
            f"{part}/chunk{i}/example_holdout_{j}.jsonl.zst"
            for part in ("validation", "test")
            for i in (1, 2)
            for j in (0, 1)
        ),
        "README.md",
        ".gitattributes",
    ],
    "starcoder": [
        "python/train-00000-of-00059.parquet",
        "c-sharp/train-00000-of-00044.parquet",
        "jupyter-scripts-dedup-filtered/train-00000-of-00007.parquet",
        "jupyter-structured-clean-dedup/train-00000-of-00006.parquet",
        "github-issues-filtered-structured/train-00000-of-00050.parquet",
        "git-commits-cleaned/train-00000-of-00048.parquet",
        "README.md",
    ],
}
"""Some names as these data sets have them."""


@pytest.mark.parametrize(("name", "count"), [("slimpajama", 6 + 2), ("starcoder", 2)])
def test_the_published_sets_are_fetched_in_part(config: Callable[..., RunConfig], name: str, count: int) -> None:
    source = config("data=slimpajama_starcoder").data.sources[name]
    taken = by_the_hub(PUBLISHED[name], source)
    assert len(taken) == count and taken == sorted(chosen(PUBLISHED[name], source=source))
