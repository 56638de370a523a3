"""Rates by hand, from seconds that are told and not measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tinyllama.train import meter
from tinyllama.train.meter import Meter, Rates, measured_matmul_flops


def new() -> Meter:
    return Meter(flops_per_token=600, peak_flops=1e6)


def test_rates_by_hand() -> None:
    timed = new()
    timed.add(2.0, tokens=1000)
    timed.add(3.0, tokens=1000)
    # 2,000 tokens in 5 s; 400 x 600 of 1e6 FLOPs a second; 8 steps of 2.5 s
    assert timed.read(tokens_left=8000) == Rates(tokens_per_s=400.0, mfu=0.24, seconds_left=20.0)


def test_reading_starts_anew_but_time_left_is_by_the_whole_run() -> None:
    timed = new()
    timed.add(3.0, tokens=1000)
    timed.read(tokens_left=9000)
    timed.add(1.0, tokens=1000)
    # 8 steps of 2 s, the mean of both
    assert timed.read(tokens_left=8000) == Rates(tokens_per_s=1000.0, mfu=0.6, seconds_left=16.0)
    assert timed.overall() == Rates(tokens_per_s=500.0, mfu=0.3, seconds_left=0.0)
    timed.add(2.0, tokens=1000)
    assert timed.read(tokens_left=7000) == Rates(tokens_per_s=500.0, mfu=0.3, seconds_left=14.0), "overall reset it"


def test_a_larger_step_counts_for_more() -> None:
    timed = new()
    timed.add(2.0, tokens=1000)
    timed.add(2.0, tokens=3000)
    # 4,000 tokens in 4 s; 6,000 are left
    assert timed.read(tokens_left=6000) == Rates(tokens_per_s=1000.0, mfu=0.6, seconds_left=6.0)


def test_before_the_first_step_there_is_no_rate() -> None:
    assert new().overall() is None


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_product_of_squares_is_two_n_cubed(
    monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    drawn: list[torch.dtype] = []
    randn = torch.randn

    def spy(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        drawn.append(dtype)
        return randn(*size, dtype=dtype, device=device)

    # read for the end, then by turns for the loop, a start and its stop: products take 0.5 s, 0.25 s and 0.5 s
    clock = iter([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 1.25, 1.25])
    monkeypatch.setattr(torch, "randn", spy)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    flops = measured_matmul_flops(torch.device("cpu"), precision, size=8, seconds=1.0)
    assert flops == 2 * 8**3 / 0.25
    assert drawn == [dtype, dtype]
    assert not list(clock)


def test_this_machine_multiplies_at_a_plausible_rate() -> None:
    flops = measured_matmul_flops(torch.device("cpu"), "fp32", size=256, seconds=0.02)
    # from a slow core under an emulator to a hundred fast ones
    assert 1e7 < flops < 1e14
