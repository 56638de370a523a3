"""Raw files from the Hugging Face hub."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from tinyllama.config.data import Data, Source
from tinyllama.data.globs import name_pattern


def download(data: Data, *, report: Callable[[str], None]) -> None:
    """Fetches what each source on a hub includes into its raw folder; what is there whole is not fetched again.

    Raises ValueError where huggingface_hub is not installed, where the hub has no such data set or does not let us in,
    and where no file in it matches; OSError where not all could be fetched.
    """
    try:
        from huggingface_hub import HfApi, RepoFile, snapshot_download
    except ImportError as error:
        raise ValueError("huggingface_hub is not installed: pip install 'tinyllama[hub]'") from error
    for key, source in data.sources.items():
        if source.hub is None:
            continue
        assert source.raw is not None  # a rule of the gate
        name, api = f"data.sources.{key}", HfApi()
        with _told(source, name=name):
            commit = api.dataset_info(source.hub, revision=source.revision).sha
            tree = api.list_repo_tree(source.hub, recursive=True, revision=commit, repo_type="dataset")
            sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
        try:
            files = chosen(sizes, source=source)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        raw = Path(source.raw).resolve()
        size = sum(sizes[file] for file in files)
        report(f"{key}: {len(files):,} files, {size / 1e9:,.1f} GB, of {source.hub} at {commit} into {raw}")
        with _told(source, name=name):
            allow, ignore = hub_patterns(sizes, source=source)
            snapshot_download(
                source.hub, repo_type="dataset", revision=commit, local_dir=raw, allow_patterns=allow,
                ignore_patterns=ignore,
            )  # fmt: skip
            # It is content with whatever the folder holds where the hub stops answering.
            for file in files:
                if not (raw / file).is_file() or (raw / file).stat().st_size != sizes[file]:
                    raise OSError(f"{file} is not there with its {sizes[file]:,} bytes")


def chosen(names: Iterable[str], *, source: Source) -> list[str]:
    """Those of a data set's files that `raw_files` will find. Raises ValueError where a glob finds none."""
    out = [name_pattern(pattern, knob="exclude") for pattern in source.exclude]
    left = [name for name in names if not any(rule.fullmatch(name) for rule in out)]
    found: dict[str, None] = {}
    for knob in ("include", "held_out_include"):
        for pattern in getattr(source, knob):
            matching = list(filter(name_pattern(pattern, knob=knob).fullmatch, left))
            if not matching:
                raise ValueError(f"no file of {source.hub} matches {knob} {pattern!r}: correct hub or {knob}")
            found |= dict.fromkeys(matching)
    return list(found)


def hub_patterns(names: Iterable[str], *, source: Source) -> tuple[list[str], list[str]]:
    """What snapshot_download is to allow and to ignore, so that it takes those of the files that are chosen.

    Its star matches slashes too. So what it is allowed is more than what is included, and what is too much is ignored
    by name: a glob in `exclude` would take more with it than it says.
    """
    names = list(names)
    allow = [pattern.replace("**/", "*") for pattern in (*source.include, *source.held_out_include)]
    left = {*names} - {*chosen(names, source=source)}
    return allow, [glob.escape(name) for name in sorted(left) if any(fnmatchcase(name, one) for one in allow)]


@contextmanager
def _told(source: Source, *, name: str) -> Iterator[None]:
    """Within, the hub's errors say what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{name}.hub: {source.hub} is gated: accept its terms on its page, then log in (hf auth login)"
        ) from error
    except Exception as error:  # not all of httpx's and of hf_xet's are OSErrors
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error  # what it says is only a guess
        refused = isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403)
        if refused or isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
            raise ValueError(
                f"{name}.hub: there is no {source.hub} at revision {source.revision or 'main'}, or not for this user: "
                "correct it, or log in (hf auth login)"
            ) from error
        raise OSError(
            f"{name}.hub: {source.hub} was not fetched whole ({' '.join(str(cause or error).split())}): the same "
            "command goes on with the files that are left"
        ) from error
