"""The step benchmark times nobody whose losses are not Hugging Face's, and tells nothing where ours are not."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest

from benchmarks.step import apart
from benchmarks.step_cases import CPU, GPU, Case, floor
from benchmarks.step_profile import group_of
from tests.benchmarks import patched

CASES = {case.name: case for case in (*CPU, *GPU)}

TINY = """
case = step.Case("14m", "PRECISION", 1, WHO, {"transformers": 1.5})
from tinyllama.config.schema import Model
small = Model(name="tiny", vocab_size=96, context=24, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48,
                   rope_theta=10000.0, norm_eps=1e-5)
step.Case.shape = property(lambda self: small)
"""
CALL = "run([case], step.How(device='cpu', threads=1, peers=None, rounds=2, least_s=0.0, peak=None), out=out)"
ran_as = partial(patched.ran, "step")
ran = partial(ran_as, CALL)


def tiny(*who: str, precision: str = "fp32") -> str:
    return TINY.replace("WHO", repr(who)).replace("PRECISION", precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_are_measured_beside_each_other(tmp_path: Path, precision: str) -> None:
    who = ("tinyllama", "engine", "transformers", "litgpt compiled")
    said = ran(tmp_path / "out.json", patch=tiny(*who, precision=precision), expect=0)
    assert "engine over tinyllama: " in said
    (case,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    entries = case["implementations"]
    assert list(entries) == list(who)
    for name in ("tinyllama", "engine", "transformers"):
        entry = entries[name]
        assert entry["status"] == "measured"
        assert len(entry["seconds"]) == 2
        assert entry["losses"][1] < entry["losses"][0], "it does not train"
        shares = [b / a for a, b in zip(entry["seconds"], entries["transformers"]["seconds"], strict=True)]
        told = entry["times_transformers"]
        assert (told["min"], told["max"]) == (min(shares), max(shares))
        assert 0 < entry["mfu"]["causal"] < entry["mfu"]["palm"]
        assert entry["versions"]["torch"]
    assert entries["litgpt compiled"]["status"] in ("not installed: litgpt", "measured")
    best = min(("tinyllama", "engine"), key=lambda name: sum(entries[name]["seconds"]))
    over = f"{best} over transformers"
    assert case["goals"] == {over: {"least": 1.5, "reached": case["ratios"][over]["median"]}}


SPOILT = """
from pathlib import Path
import torch
written_ = step.written
def written(case, folder, **how):
    written_(case, folder, **how)
    told = step.json.loads((folder / "case.json").read_text())
    told["huggingface"] |= CHANGED
    (folder / "case.json").write_text(step.json.dumps(told))
step.written = written
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_losses_of_ours_are_seen(tmp_path: Path, precision: str) -> None:
    """In bf16 too: positions that are hardly turned, which with weights as they begin would hide among roundings."""
    changed = {"rope_theta": 1e12, "rope_parameters": {"rope_type": "default", "rope_theta": 1e12}}
    patch = tiny("tinyllama", "transformers", precision=precision) + SPOILT.replace("CHANGED", repr(changed))
    said = ran(tmp_path / "out.json", patch=patch, expect=1)
    assert f"14m-{precision}: tinyllama: other losses than transformers's" in said
    assert f"14m-{precision}: nothing is told" in said
    assert not (tmp_path / "out.json").exists()


def test_a_loss_that_is_no_number_is_infinitely_far() -> None:
    """Wherever it comes: max() takes no notice of a NaN that is not the first."""
    assert apart([10.0, 5.0, 1.0], [10.0, 5.5, 1.2]) == pytest.approx((0.0, 0.05))
    for losses in ([10.0, 5.0, math.nan], [math.nan, 5.0, 1.0], [10.0, math.inf, 1.0]):
        assert apart(losses, [10.0, 5.0, 1.0]) == (math.inf, math.inf)


def test_the_floor_is_the_work_at_the_rates() -> None:
    """The 1.1B model at the rates and the batch of the paper arithmetic: 790 TFLOP/s and 4.3 TB/s, 16,384 tokens."""
    case = Case("1.1b", "bf16", 8, (), {})
    parts = floor(case, {"tflop_per_s": 790.0, "gb_per_s": 4300.0})
    assert parts["matrix products"] + parts["loss"] == pytest.approx(128.7e-3, rel=0.01)
    assert parts["elementwise"] == pytest.approx(15.1e-3, rel=0.05)
    assert parts["attention"] == pytest.approx(16384 * 0.554e9 / 790e12, rel=0.01)
    assert parts["optimizer"] == pytest.approx(1.1e9 * 30 / 4300e9, rel=0.01)
    assert floor(case, {"tflop_per_s": 395.0, "gb_per_s": 4300.0})["loss"] == pytest.approx(2 * parts["loss"])
    assert set(CASES) >= {"1.1b-bf16", "nano-fp32", "5m-bf16"}


def test_the_time_of_a_step_is_shared_out_by_group(tmp_path: Path) -> None:
    patch = tiny("tinyllama") + "from benchmarks import step_profile\nstep.profiled = step_profile.run\n"
    call = "profiled(case, ['tinyllama'], device='cpu', threads=1, steps=2)"
    said = ran_as(call, tmp_path / "out.json", patch=patch, expect=0)
    for group in ("matrix products", "attention", "elementwise", "optimizer", "gaps", "step"):
        assert f"│ {group}" in said
    assert "tinyllama, 14m-fp32, 1 x 24 tokens" in said


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::mm", "matrix products"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNN", "matrix products"),
        ("_attention_forward", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("_swiglu_forward", "elementwise"),
        ("aten::mul", "elementwise"),
    ],
)
def test_a_kernel_is_counted_where_it_belongs(name: str, group: str) -> None:
    assert group_of(name) == group
