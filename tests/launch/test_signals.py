"""What a process that is asked to stop ends with, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = """
import signal, sys, time
from tinyllama.launch import signals

requests = signals.StopRequests()
requests.begin()
signals.PATIENCE = 0.5

def ready():
    print("ready", flush=True)

def work():
    requests.begin_part({limit})
    {work}
    return 0

sys.exit(requests.around(work, say=print))
"""
SLEEP = "ready(); time.sleep(60)"
IN_C = "import hashlib; ready(); hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000_000)"
SWALLOWED = """
    try: ready(); time.sleep(60)
    except BaseException: pass
    requests.check()
"""
MADE_ANOTHER = """
    try: ready(); time.sleep(60)
    finally: None.closed
"""
CLEANED_UP = """
    try: ready(); time.sleep(60)
    finally: time.sleep(1); print("cleaned up")
"""


def start(work: str, *, limit: float | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER.format(work=work.strip(), limit=limit)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert limit is not None or process.stdout.readline() == "ready\n"
    return process


GOES_ON = "the same command goes on where this one stopped\n"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=20)
    return process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
def test_a_request_ends_the_work_with_its_status(number: int) -> None:
    process = start(SLEEP)
    process.send_signal(number)
    by_user = number == signal.SIGINT
    how = "stopped by Ctrl-C" if by_user else "stopped by a signal or the time limit"
    assert ended(process) == (130 if by_user else 75, f"{how}: {GOES_ON}")


def test_later_requests_do_not_disturb_the_end() -> None:
    process = start(CLEANED_UP)
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert ended(process) == (75, f"cleaned up\nstopped by a signal or the time limit: {GOES_ON}")


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    process = start(CLEANED_UP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "interrupted: the same command goes on from the newest checkpoint\n")


def test_a_request_that_was_made_another_error_is_not_lost() -> None:
    for work in (SWALLOWED, MADE_ANOTHER):
        process = start(work)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (75, f"stopped by a signal or the time limit: {GOES_ON}")


def test_an_error_that_nobody_asked_for_stays_one() -> None:
    status, out = ended(start("ready(); None.closed"))
    assert (status, out) == (1, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_to_a_process_that_is_in_c(number: int, status: int) -> None:
    process = start(IN_C)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(number)
    assert ended(process) == (status, "")
    assert time.monotonic() - began < 5


def test_the_time_limit_counts_from_the_start_of_the_process() -> None:
    assert ended(start(SLEEP, limit=3)) == (75, f"ready\nstopped by a signal or the time limit: {GOES_ON}")
    assert ended(start(SLEEP, limit=-1)) == (75, f"stopped by a signal or the time limit: {GOES_ON}")


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("ready(); time.sleep(1)")
    finally:
        signal.signal(signal.SIGHUP, former)
    process.send_signal(signal.SIGHUP)
    assert ended(process) == (0, "")
