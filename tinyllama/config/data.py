"""What a data set is made of: the sources of its text and their tokenizer. Part of `config.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from tinyllama.config.kinds import Count, Globs, Name, NonNegativeInt, PositiveFloat, PositiveInt, Section, Sha256


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Section):
    """The SentencePiece model: a user's own, or one trained on a sample of the data."""

    model: str | None
    """Path of a `tokenizer.model` to use as it is; null trains one."""
    sha256: Sha256 | None
    """What that file must hash to; null takes any."""
    vocab_size: Annotated[int, Field(ge=300)]
    """Pieces, bytes and control symbols together."""
    sample_bytes: Count
    """How much text a new tokenizer is trained on, shared evenly by the sources."""


@dataclass(frozen=True, kw_only=True)
class Filter(Section):
    """Keeps or drops records by one metadata field: exactly one of keep and not_in says how."""

    field: str
    """Dotted path of the field within a record, such as meta.redpajama_set_name."""
    keep: Annotated[tuple[str, ...] | None, Field(validation_alias=AliasChoices("in", "keep"))] = None
    """Only records whose field holds one of these are taken; in YAML and on the command line it is called `in`."""
    not_in: tuple[str, ...] | None = None
    """Records whose field holds one of these are left out."""


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """One source of documents in the mixture."""

    format: Literal["stdlib_code", "stdlib_text", "text", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
    """How its raw files are read: text takes each file as one document, and so reads source trees too; the two stdlib
    formats read the running Python's own library and need no files."""
    weight: PositiveFloat | Literal["natural"]
    """Its share of the training tokens, relative to the other weights; natural is its size, or what is taken of it."""
    raw: str | None = None
    """Folder of its raw files; null for the stdlib formats."""
    hub: str | None = None
    """Data set on the Hugging Face hub that task=download fetches into `raw`, such as cerebras/SlimPajama-627B."""
    revision: str | None = None
    """Branch, tag or commit of it; null is its newest."""
    include: Globs = ("**/*",)
    """Which files under `raw`, as globs."""
    exclude: Globs = ()
    """Which of these to leave out, as globs."""
    text_field: str = "text"
    """The field (jsonl) or column (parquet) that holds a document's text."""
    filter: Filter | None = None
    """Records to leave out."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """The fraction of documents, chosen by a hash of their path, that is kept from training to measure loss on."""
    held_out_include: Globs = ()
    """The data set's own files to measure loss on, as globs; where there are any, they take the place of `held_out`."""
    tokens: Count | None = None
    """About how many training tokens it has, for plans made before it is prepared."""
    unique_tokens: Count | None = None
    """Train on so many of its tokens, fewer than it has: windows drawn from all of it, the same for any seed, a smaller
    number's among a larger one's. Null takes all."""
    max_epochs: PositiveFloat | None = None
    """Refuse a budget that would repeat it more often than this."""

    @property
    def is_embedded(self) -> bool:
        """Whether it is the running Python's own library, so that it needs no raw files."""
        return self.format.startswith("stdlib_")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """A tokenizer and the sources that are mixed."""

    name: Name
    """What its prepared folder is called."""
    tokenizer: Tokenizer
    """How text becomes tokens."""
    sources: Annotated[dict[Name, Source], Field(min_length=1, max_length=20)]
    """By name; the weights are normalised over all of them."""

    @property
    def unique_tokens(self) -> dict[str, int]:
        """How many tokens are taken of the sources that are not taken whole."""
        return {name: source.unique_tokens for name, source in self.sources.items() if source.unique_tokens}


@dataclass(frozen=True, kw_only=True)
class Prepare(Section):
    """How raw files are turned into shards. None of it changes what comes out."""

    workers: PositiveInt | None
    """Processes on this machine; null is one for each core."""
    parts: PositiveInt
    """Into how many parts the work is cut when several machines share it."""
    part: NonNegativeInt | None
    """Which of them this is, from 0; null does all that is left."""
    on_error: Literal["stop", "skip"]
    """What to do about a document that cannot be read: stop, or leave it out and write down what was left out."""


@dataclass(frozen=True, kw_only=True)
class Inspect(Section):
    """What task=inspect shows of a prepared data set."""

    samples: NonNegativeInt
    """Documents of each source to show."""
    characters: PositiveInt
    """How much of each."""
    at_step: NonNegativeInt | None
    """A step, from 0, whose documents are listed; null lists none."""
