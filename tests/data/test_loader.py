"""Steps are the same samples on any ranks, and every token is trained on and scored as promised."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tinyllama.data.loader import IGNORED, HeldOut, Loader, window_count
from tinyllama.data.mixture import Stage
from tinyllama.data.shards import TokenStream

if TYPE_CHECKING:
    from conftest import Prepared

WEIGHTS = {"web": 0.7, "code": 0.3}
STAGES = [Stage(None, WEIGHTS)]
CONTEXT, SEQUENCES = 32, 64
PIECES = [range(3, 4), range(9, 30), range(70, 72), range(5000, 5040)]
"""A step's samples where some before, between and after them are left out."""


def of(step: int) -> list[range]:
    """The samples of a step of a run that leaves nothing out."""
    return [range(step * SEQUENCES, (step + 1) * SEQUENCES)]


@pytest.fixture(scope="module")
def loader(prepared: Prepared) -> Loader:
    return Loader(prepared.manifest, prepared.folder, stages=STAGES, unique_tokens={}, context=CONTEXT, seed=5)


def tokens(prepared: Prepared, name: str, split: str = "train") -> np.ndarray:
    entry = getattr(prepared.manifest.sources[name], split)
    stream = TokenStream(prepared.folder, split=entry, tokenizer=prepared.manifest.tokenizer)
    return stream.windows(np.array([0]), length=len(stream))[0]


@pytest.mark.parametrize(
    ("world", "micro_batch"), [(1, 64), (1, 1), (1, 4), (2, 8), (2, 2), (4, 4), (8, 1), (16, 4), (32, 2), (64, 1)]
)
def test_a_step_is_the_same_samples_on_any_ranks(loader: Loader, world: int, micro_batch: int) -> None:
    for samples in (*map(of, (0, 1, 77, 1_430_511)), PIECES):
        whole = loader.batch(samples, rank=0, world=1, micro_batch=SEQUENCES).reshape(SEQUENCES, CONTEXT + 1)
        parts = [loader.batch(samples, rank=rank, world=world, micro_batch=micro_batch) for rank in range(world)]
        assert parts[0].shape == (SEQUENCES // (world * micro_batch), micro_batch, CONTEXT + 1)
        joined = np.stack(parts, axis=1).reshape(SEQUENCES, CONTEXT + 1)
        assert (joined == whole).all()
        assert len(np.unique(whole, axis=0)) > SEQUENCES // 2


def test_a_batch_is_the_windows_that_samples_tells(prepared: Prepared, loader: Loader) -> None:
    texts = [tokens(prepared, name) for name in WEIGHTS]
    for step in range(40):
        batch = loader.batch(of(step), rank=0, world=1, micro_batch=SEQUENCES)[0]
        for row, source, _, window in zip(batch, *loader.mixture.locate(of(step)[0]), strict=True):
            start = min(window * CONTEXT, len(texts[source]) - CONTEXT - 1)
            assert (row == texts[source][start : start + CONTEXT + 1]).all()


def test_pieces_are_their_samples_one_after_the_other(loader: Loader) -> None:
    for cut in ([SEQUENCES], [1, 62, 1], [8] * 8, [3, 5, 1, 40, 15], [1] * SEQUENCES):
        firsts = [1000 * i + 7 for i in range(len(cut))]
        pieces = [range(first, first + length) for first, length in zip(firsts, cut, strict=True)]
        alone = [loader.batch([range(k, k + 1)], rank=0, world=1, micro_batch=1)[0] for piece in pieces for k in piece]
        for micro_batch in (1, 4, 64):
            batch = loader.batch(pieces, rank=0, world=1, micro_batch=micro_batch)
            assert (batch.reshape(SEQUENCES, CONTEXT + 1) == np.concatenate(alone)).all()


def test_every_token_but_the_first_is_predicted_each_epoch(prepared: Prepared, loader: Loader) -> None:
    for index, name in enumerate(WEIGHTS):
        length = len(tokens(prepared, name))
        predicted = np.zeros((3, length), dtype=int)
        windows = window_count(length, context=CONTEXT)
        for step in range(100):
            for source, epoch, window in zip(*loader.mixture.locate(of(step)[0]), strict=True):
                if source == index and epoch < 3:
                    start = min(window * CONTEXT, length - CONTEXT - 1)
                    predicted[epoch, start + 1 : start + CONTEXT + 1] += 1
        assert (predicted[:, 0] == 0).all()
        assert (predicted[:, 1:] >= 1).all()
        # Only where the last window reaches back is a token predicted twice.
        assert predicted[0].sum() == windows * CONTEXT < length - 1 + CONTEXT


def test_window_count() -> None:
    assert [window_count(tokens, context=4) for tokens in (5, 6, 8, 9, 10)] == [1, 2, 2, 2, 3]


def test_seeds_differ_and_steps_do_not_repeat(prepared: Prepared, loader: Loader) -> None:
    other = Loader(prepared.manifest, prepared.folder, stages=STAGES, unique_tokens={}, context=CONTEXT, seed=6)
    first = [loader.batch(of(step), rank=0, world=1, micro_batch=SEQUENCES) for step in range(5)]
    assert all((a != b).any() for a, b in pairwise(first))
    assert (first[0] != other.batch(of(0), rank=0, world=1, micro_batch=SEQUENCES)).any()


def test_stages_reach_the_batches(prepared: Prepared) -> None:
    stages = [Stage(4096, {"web": 1, "code": 0}), Stage(None, {"web": 0, "code": 1})]
    staged = Loader(prepared.manifest, prepared.folder, stages=stages, unique_tokens={}, context=CONTEXT, seed=5)
    known = {name: {row.tobytes() for row in windows_of(prepared, name)} for name in WEIGHTS}
    for name, samples in (("web", range(4032, 4096)), ("code", range(4096, 4160))):
        batch = staged.batch([samples], rank=0, world=1, micro_batch=64)[0]
        assert {row.tobytes() for row in batch} <= known[name]


@pytest.mark.parametrize("kept", [1, 7, 40])
def test_a_source_of_which_less_is_taken(prepared: Prepared, kept: int) -> None:
    """The same windows each epoch and for any seed, a smaller part within a larger one; the other source stays."""

    def seen(windows: int, seed: int) -> tuple[list[set[int]], set[int]]:
        limit = {"web": windows * CONTEXT + CONTEXT - 1}
        part = Loader(
            prepared.manifest, prepared.folder, stages=STAGES, unique_tokens=limit, context=CONTEXT, seed=seed
        )
        found = part.mixture.locate(range(20_000))
        web, code = (part.mixture.names.index(name) for name in ("web", "code"))
        of_web = [set(found.window[(found.source == web) & (found.epoch == n)].tolist()) for n in range(20)]
        return of_web, set(found.window[found.source == code].tolist())

    taken, code = seen(kept, seed=5)
    assert all(len(windows) == kept for windows in taken)
    assert all(windows == taken[0] for windows in taken)
    assert taken == seen(kept, seed=6)[0]
    assert taken[0] < seen(kept + 1, seed=5)[0][0]
    assert kept == 1 or taken[0] != set(range(kept)), "drawn from all of it"
    assert code == set(range(window_count(len(tokens(prepared, "code")), context=CONTEXT)))


def windows_of(prepared: Prepared, name: str) -> np.ndarray:
    """Every window of a source, [windows, context + 1]."""
    text = tokens(prepared, name)
    starts = np.minimum(np.arange(window_count(len(text), context=CONTEXT)) * CONTEXT, len(text) - CONTEXT - 1)
    return np.stack([text[start : start + CONTEXT + 1] for start in starts])


def test_what_does_not_fit_is_refused(prepared: Prepared, loader: Loader) -> None:
    with pytest.raises(
        ValueError, match=r"a step has 64 sequences, which 3 ranks with micro-batches of 2 do not divide"
    ):
        loader.batch(of(0), rank=0, world=3, micro_batch=2)
    with pytest.raises(ValueError, match=r"a step has 64 sequences, which 1 ranks with micro-batches of 128 do not"):
        loader.batch(of(0), rank=0, world=1, micro_batch=128)
    length = len(tokens(prepared, "code"))
    knobs = {"stages": [Stage(None, {"code": 1.0})], "unique_tokens": {}, "seed": 0}
    Loader(prepared.manifest, prepared.folder, context=length - 1, **knobs)
    with pytest.raises(
        ValueError, match=rf"source code has {length:,} training tokens, .* = {length + 1:,}: give it more"
    ):
        Loader(prepared.manifest, prepared.folder, context=length, **knobs)


@pytest.mark.parametrize("context", [1, 7, 32, 100_000])
def test_held_out_tokens_are_scored_once_in_order(prepared: Prepared, context: int) -> None:
    held_out = HeldOut(prepared.manifest, prepared.folder, source="web", context=context)
    text = tokens(prepared, "web", "held_out")
    inputs, targets = held_out.take(range(len(held_out)))
    assert inputs.shape == targets.shape == (len(held_out), context)
    scored = targets != IGNORED
    assert (targets[scored] == text).all() and scored.sum() == held_out.tokens == len(text)
    assert (inputs[scored] == np.concatenate([[prepared.manifest.tokenizer.eos], text[:-1]])).all()
    assert (scored.sum(axis=1)[:-1] == context).all()
    for i, window in enumerate([len(held_out) - 1, 0]):
        part = held_out.take(np.array([len(held_out) - 1, 0]))
        assert (part[0][i] == inputs[window]).all() and (part[1][i] == targets[window]).all()
