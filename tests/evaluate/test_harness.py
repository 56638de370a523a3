"""The harness on a model of ours beside its own backend on the same weights in transformers, and beside fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.evaluate import local_tasks
from tinyllama import models
from tinyllama.config.schema import RunConfig
from tinyllama.evaluate.answers import Alone, Answer, Row
from tinyllama.evaluate.progress import Asking
from tinyllama.launch.signals import Stopped
from tinyllama.model.llama import Llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of what the harness imports

CPU = torch.device("cpu")
NATS = 2e-4
"""A sum of up to 96 log-probabilities in fp32, whose logits of up to 50 come from sums in another order."""
NAMES = ("local_sums", "local_texts", "local_words")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def theirs(twins: Any, folder: Path) -> Callable[[int | None], dict[str, Any]]:
    """What the harness' own backend scores on transformers' Llama, by its own front door, with so many examples."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    @cache
    def scored(shots: int | None) -> dict[str, Any]:
        model = HFLM(pretrained=twins.theirs, tokenizer=twins.fast, device="cpu", batch_size=1)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        whole = simple_evaluate(model, tasks=list(NAMES), task_manager=manager, num_fewshot=shots, log_samples=True)
        assert whole is not None
        return dict(whole)

    return scored


@pytest.fixture(scope="module")
def twins() -> Any:
    """The modules that take the harness and transformers to import, the model in both forms, both tokenizers."""
    from tests.evaluate import twins
    from tinyllama.evaluate import harness

    model, whole = twins.ours(), twins.fast()
    return SimpleNamespace(
        harness=harness, ours=model, theirs=twins.theirs(model), fast=whole, pieces=twins.Pieces(whole)
    )


class Kept(Alone):
    """Keeps what it was asked and said; `off` is added to what the rows of a fixed length say."""

    off = 0.0

    def __init__(self, model: Llama, pieces: Any) -> None:
        super().__init__(model, device=CPU, eos=pieces.eos, n_tokens=pieces.vocab_size)
        self.kept: list[tuple[Row, Answer]] = []

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        said = [answer._replace(log_likelihood=answer.log_likelihood + self.off) for answer in super().answers(rows)]
        self.kept += zip(rows, said, strict=True)
        return said


def subject(twins: Any, answerer: Alone, *, batch: int = 16, adds_start: bool = False) -> Any:
    return twins.harness.Subject(
        answerer, twins.pieces, start=twins.pieces.start, adds_start=adds_start, context=96, batch=batch
    )


def asked(twins: Any, folder: Path, *, names: Sequence[str] = NAMES, answerer: Alone | None = None, **how: Any) -> Any:
    answerer = answerer or Kept(twins.ours, twins.pieces)
    settings = {"shots": None, "limit": None} | {key: how.pop(key) for key in ("shots", "limit") if key in how}
    return twins.harness.ask(subject(twins, answerer, **how), names, tasks_dir=folder, **settings)


@pytest.mark.parametrize("shots", [None, 2], ids=["no examples", "two examples, which do not fit"])
def test_it_scores_what_the_harness_scores_on_an_export(
    twins: Any, folder: Path, theirs: Callable[[int | None], dict[str, Any]], shots: int | None
) -> None:
    kept = Kept(twins.ours, twins.pieces)
    mine, other = asked(twins, folder, answerer=kept, shots=shots), theirs(shots)
    assert not mine.failed
    assert mine.tasks["local_sums"]["questions"] == local_tasks.ITEMS >= 200
    assert set(mine.tasks) == set(NAMES)
    assert {found["shots"] for found in mine.tasks.values()} == {shots or 0}
    for name, metrics in mine.tasks.items():
        for metric, value in metrics.items():
            if metric not in ("questions", "shots"):
                assert value == pytest.approx(other["results"][name][f"{metric},none"], abs=1e-6), (name, metric)
    assert 0.05 < mine.tasks["local_sums"]["acc"] < 0.95, "a score that says nothing would be equal always"
    assert max(len(row.inputs) for row, _ in kept.kept) == 96, "something is cut"


def rows_of(other: dict[str, Any]) -> list[float]:
    samples = sorted(other["samples"]["local_sums"], key=lambda sample: sample["doc_id"])
    return [float(response[0][0]) for sample in samples for response in sample["resps"]]


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_each_row_is_as_likely_as_there(twins: Any, theirs: Callable[[int | None], dict[str, Any]], off: float) -> None:
    """And one that is a thousandth of a nat off would show."""
    from lm_eval.api.instance import Instance

    other = theirs(None)
    samples = sorted(other["samples"]["local_sums"], key=lambda sample: sample["doc_id"])
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=tuple(arguments), idx=0)
        for sample in samples
        for arguments in sample["arguments"]
    ]
    answerer = Kept(twins.ours, twins.pieces)
    answerer.off = off
    mine = [nats for nats, _ in subject(twins, answerer).loglikelihood(requests)]
    assert len(mine) == 4 * local_tasks.ITEMS
    assert (np.abs(np.array(mine) - np.array(rows_of(other))).max() < NATS) == (off == 0)


def test_it_goes_on_with_a_text_as_there(twins: Any, theirs: Callable[[int | None], dict[str, Any]]) -> None:
    """Up to a stop string, which some of the texts would hold, or as far as the task lets it."""
    from lm_eval.api.instance import Instance

    samples = sorted(theirs(None)["samples"]["local_words"], key=lambda sample: sample["doc_id"])
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=tuple(sample["arguments"][0]), idx=0)
        for sample in samples
    ]
    expected = [sample["resps"][0][0] for sample in samples]
    one = subject(twins, Kept(twins.ours, twins.pieces))
    assert one.generate_until(requests) == expected
    lengths = [len(text) for text in expected]
    assert len(set(expected)) > 6 and min(lengths) < 9 and max(lengths) > 9, "some are stopped, some are not"


def slow(model: Llama, row: Row) -> tuple[float, bool]:
    """One row at a time, in fp64, with a whole softmax."""
    logits_tv: Tensor = model.logits(torch.tensor([row.inputs]))[0][0]
    scores_tv = logits_tv.softmax(-1).log()[-len(row.targets) :]
    each = scores_tv[torch.arange(len(row.targets)), torch.tensor(row.targets)]
    return float(each.sum()), scores_tv.argmax(-1).tolist() == list(row.targets)


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_batches_score_as_one_row_in_fp64_does(twins: Any, folder: Path, batch: int) -> None:
    kept = Kept(twins.ours, twins.pieces)
    asked(twins, folder, names=NAMES[:2], answerer=kept, batch=batch, limit=25)
    double = Llama(twins.ours.shape, ops=twins.ours.blocks[0].mlp.ops).double()
    double.load_state_dict(twins.ours.state_dict())
    assert len(kept.kept) > 100
    for row, answer in kept.kept:
        nats, greedy = slow(double, row)
        assert answer.log_likelihood == pytest.approx(nats, abs=NATS)
        assert answer.greedy == greedy


def test_a_start_is_added_where_the_model_knows_it(twins: Any, folder: Path) -> None:
    """To a text with something before it, once; a text with nothing before it begins with it in any case."""
    start = twins.pieces.start
    for adds in (False, True):
        kept = Kept(twins.ours, twins.pieces)
        asked(twins, folder, names=NAMES[:2], answerer=kept, adds_start=adds, limit=3)
        begins = [row.inputs[0] == start for row, _ in kept.kept]
        counts = [list(row.inputs).count(start) for row, _ in kept.kept]
        scores = [len(row.inputs) - len(row.targets) for row, _ in kept.kept]
        assert begins[:12] == [adds] * 12, "multiple choice"
        assert counts[:12] == [int(adds)] * 12
        assert all(begins[12:]), "rolling"
        assert scores[12:] == [0] * 3


def test_tasks_that_fail_are_told_and_stop_no_other(twins: Any, tmp_path: Path) -> None:
    local_tasks.broken(tmp_path)
    scores = asked(twins, tmp_path, names=["local_missing", "local_sums", "local_columns"], limit=5)
    assert set(scores.tasks) == {"local_sums"}
    assert set(scores.failed) == {"local_missing", "local_columns"}
    assert "local_missing.jsonl" in scores.failed["local_missing"]
    assert "\n" not in "".join(scores.failed.values())


def test_a_task_that_takes_no_examples_says_so(twins: Any, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"one two {n}"} for n in range(4)]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    metric = {"metric_list": [{"metric": "bits_per_byte"}]}
    local_tasks.task(tmp_path, "none", rows, **rolling, **metric, num_fewshot=0)
    local_tasks.task(tmp_path, "some", rows, **rolling, **metric)
    scores = asked(twins, tmp_path, names=["none", "some"], shots=1, limit=2)
    assert {name: (found["shots"], found["questions"]) for name, found in scores.tasks.items()} == {
        "none": (0, 2),
        "some": (1, 2),
    }


def test_each_task_is_heard_of_as_it_ends(twins: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that wants to end the process has failed; a person who does has not asked for a failure."""
    local_tasks.broken(tmp_path)
    one, heard = subject(twins, Kept(twins.ours, twins.pieces)), []
    inner = twins.harness._asked

    def ask(subject: Any, name: str, *rest: Any, **how: Any) -> Any:
        if name == "ends":
            raise SystemExit("unsafe code")
        if name == "pressed":
            raise KeyboardInterrupt
        return inner(subject, name, *rest, **how)

    monkeypatch.setattr(twins.harness, "_asked", ask)

    def asking(names: list[str], hear: Callable[..., None]) -> Any:
        return twins.harness.ask(one, names, tasks_dir=tmp_path, shots=None, limit=2, hear=hear)

    whole = asking(
        ["local_sums", "ends", "local_missing", "local_texts"],
        lambda name, scores: heard.append((name, list(scores.tasks), list(scores.failed))),
    )
    assert heard == [
        ("local_sums", ["local_sums"], []),
        ("ends", [], ["ends"]),
        ("local_missing", [], ["local_missing"]),
        ("local_texts", ["local_texts"], []),
    ]
    assert set(whole.tasks) == {"local_sums", "local_texts"}
    assert whole.failed["ends"] == "SystemExit: unsafe code"
    with pytest.raises(KeyboardInterrupt):
        asking(["pressed"], print)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):  # no task's failure
        asking(["local_sums"], full)


def test_what_was_scored_is_noted_and_told_where_the_rest_is_cut_short(
    twins: Any, folder: Path, config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a disk that is full, or by a request to stop that the harness has made a task's failure of."""
    how = config(f"evaluate.tasks=[{','.join(NAMES)}]", f"evaluate.tasks_dir={folder}", "evaluate.limit=3").evaluate
    trained: Any = SimpleNamespace(start=twins.pieces.start, adds_start=False, shape=SimpleNamespace(context=96))
    console, noted = Console(width=100), []

    def asking(note: Callable[..., None]) -> str:
        answerer, notes = Kept(twins.ours, twins.pieces), cast("Any", SimpleNamespace(tasks=note))
        with console.capture() as capture, pytest.raises((OSError, Stopped)):
            models._asked(how, trained, answerer, twins.pieces, notes=notes, progress=Asking(console), console=console)
        return capture.get()

    def until_full(scores: Any, failed: Any, *, asked: Any) -> None:
        if noted:
            raise OSError("disk full")
        noted.append((list(scores), asked))

    text = asking(until_full)
    assert noted == [(["local_sums"], ["local_sums"])]
    assert "local_sums" in text and "local_texts" in text and "local_words" not in text

    def check() -> None:
        raise Stopped(by_user=True)

    monkeypatch.setattr(models, "requests", SimpleNamespace(check=check))
    assert asking(lambda *_, **__: noted.append(([], []))) == ""
    assert len(noted) == 1


def test_sampling_is_refused_and_no_room_is(twins: Any, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"q": "a", "a": "b"}]
    plain = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    local_tasks.task(tmp_path, "drawn", rows, **plain, generation_kwargs={"do_sample": True, "until": ["\n"]})
    local_tasks.task(tmp_path, "long", rows, **plain, generation_kwargs={"max_gen_toks": 96, "until": ["\n"]})
    scores = asked(twins, tmp_path, names=["drawn", "long"])
    assert "do_sample" in scores.failed["drawn"]
    assert "96 new tokens fill a context of 96" in scores.failed["long"]


def test_names_nobody_has_are_known_with_their_neighbours(twins: Any, folder: Path) -> None:
    assert twins.harness.unknown(NAMES, folder) == {}
    assert twins.harness.unknown(["hellaswag", "arc_easy", "local_sums"], folder) == {}
    near = twins.harness.unknown(["hellaswga", "local_sum", "boolq"], folder)
    assert list(near) == ["hellaswga", "local_sum"]
    assert "hellaswag" in near["hellaswga"] and near["local_sum"][0] == "local_sums"


def test_a_file_that_cannot_be_read_is_named(twins: Any, tmp_path: Path) -> None:
    local_tasks.write(tmp_path)
    (tmp_path / "torn.yaml").write_text("task: torn\ndoc_to_text: '{{")
    assert twins.harness.unknown(["torn"], tmp_path).keys() == {"torn"}
    [(path, why)] = twins.harness.broken_files(tmp_path).items()
    assert path.name == "torn.yaml" and "\n" not in why


@pytest.mark.parametrize("word", ["task", "group", "tag"])
def test_the_text_of_the_files_tells_every_name_that_an_index_has(twins: Any, tmp_path: Path, word: str) -> None:
    """The short way to an index knows whether the long one is needed."""
    from lm_eval.tasks import TaskManager

    root = Path(twins.harness.lm_eval.tasks.__file__).parent
    folders = [root / name for name in ("arc", "hellaswag", "glue", "super_glue", "winogrande", "blimp")]
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    names = {"task": manager.all_subtasks, "group": manager.all_groups, "tag": manager.all_tags}[word]
    assert names
    assert set(names) <= twins.harness._named()[1]


def test_it_draws_nobody_elses_numbers(twins: Any, folder: Path) -> None:
    import random

    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    first = asked(twins, folder, shots=2, limit=20)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    random.seed(5)
    assert asked(twins, folder, shots=2, limit=20) == first, "and scores repeat"
