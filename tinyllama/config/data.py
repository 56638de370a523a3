"""What a data set is made of: the sources of its text and their tokenizer. Part of `config.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tinyllama.config.kinds import Count, Name, PositiveFloat, Section, Sha256


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
    """Keeps or drops records by one metadata field."""

    field: str
    """Dotted path of the field within a record, such as meta.redpajama_set_name."""
    not_in: tuple[str, ...]
    """Records whose field holds one of these are left out."""


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """One source of documents in the mixture."""

    format: Literal["stdlib_code", "stdlib_text", "text", "jsonl", "jsonl.zst", "parquet"]
    """How its raw files are read; the two stdlib formats read the running Python's own library and need no files."""
    weight: PositiveFloat
    """Its share of the training tokens, relative to the other weights."""
    raw: str | None = None
    """Folder of its raw files; null for the stdlib formats."""
    include: str = "**/*"
    """Which files under `raw`, as a glob."""
    text_field: str = "text"
    """The field (jsonl) or column (parquet) that holds a document's text."""
    filter: Filter | None = None
    """Records to leave out."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """The fraction of documents, chosen by a hash of their path, that is kept from training to measure loss on."""
    tokens: Count | None = None
    """About how many training tokens it has, for plans made before it is prepared."""
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
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    """By name; the weights are normalised over all of them."""
