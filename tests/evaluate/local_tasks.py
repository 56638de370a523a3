"""Tasks of the harness' that need no network: YAML beside JSON lines, all by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

ITEMS = 220


def write(folder: Path) -> Path:
    """Three tasks: local_sums asks for one of four, local_texts how likely a text is, local_words to go on with one."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = [
        {
            "question": f"Question: {a} + {b} = ?" + " Think well." * (a % 4) + "\nAnswer:",
            "choices": [str(a + b + (k - a % 4) * (1 + 9 * (b % 3))) for k in range(4)],
            "gold": a % 4,
        }
        for a, b in ((n * 7 % 50 + 3, n * 13 % 41 + 5) for n in range(ITEMS))
    ]
    texts = [{"text": " ".join(str(n * k % 97) for k in range(1, 6 + n % 60))} for n in range(30)]
    words = [{"question": f"{n} {n + 1} {n + 2}", "answer": str(n + 3)} for n in range(12)]
    task(
        folder,
        "local_sums",
        sums,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=[_mean("acc"), _mean("acc_norm")],
    )
    task(
        folder,
        "local_texts",
        texts,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    task(
        folder,
        "local_words",
        words,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n", "<"], "max_gen_toks": 12, "do_sample": False},
        metric_list=[_mean("exact_match")],
    )
    return folder


def task(folder: Path, name: str, rows: list[dict[str, object]] | None, **settings: object) -> None:
    """One task; without rows, its data is missing."""
    data = folder / f"{name}.jsonl"
    if rows is not None:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "metadata": {"version": 1.0},
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))


def broken(folder: Path) -> Path:
    """Beside them, one whose data is not there and one that asks for a column that its data has not."""
    write(folder)
    choice = {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": "choices"}
    task(folder, "local_missing", None, doc_to_text="{{question}}", **choice)
    task(folder, "local_columns", [{"a": 1}, {"a": 2}], doc_to_text="{{question.no.where}}", **choice)
    return folder


def _mean(metric: str) -> dict[str, object]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
