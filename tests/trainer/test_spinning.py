"""The spinning of OpenMP's threads: libgomp's rule, and its use while cores are lacking."""

import os
import subprocess
import sys
import time
from threading import active_count

import pytest

from classic_cnns.trainer import spinning

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
linux = pytest.mark.skipif(CORES < 2 or not sum(spinning.times()), reason="one core, or no Linux")
BUSY_LOOP = [sys.executable, "-c", "while True: pass"]


def python(code: str, **variables: str) -> str:
    """The output of a process of its own, since libgomp reads its variables once."""
    env = {key: x for key, x in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=env | variables, capture_output=True, text=True, check=True, timeout=300
    ).stdout


SPUN = """
import time, torch
from classic_cnns.trainer.spinning import start_sleepers

def spun():
    torch.zeros(torch.get_num_threads() * 2**16).add_(1)
    start = time.process_time()
    time.sleep(1)
    return time.process_time() - start

alone = spun()
end = start_sleepers(torch.get_num_threads())
time.sleep(0.5)
crowded = spun()
end.set()
time.sleep(0.5)
print(alone, crowded, spun())
"""


@linux
@pytest.mark.slow
def test_libgomp_spins_briefly_while_there_are_more_openmp_threads_than_cpus():
    counts = {"GOMP_SPINCOUNT": str(10**11), "OMP_NUM_THREADS": str(CORES)}
    before, crowded, after = map(float, python(SPUN, **counts).split())
    rule = "libgomp's rule for GOMP_SPINCOUNT has changed; see trainer/spinning.py"
    assert before > 0.25, f"the threads do not spin at all: {rule}"
    assert crowded < 0.1, f"the threads spin as if there were CPUs for all: {rule}"
    assert after > 0.25, f"additional threads are still counted after their end: {rule}"


COMMAND = """
from classic_cnns.trainer.spinning import limit_spinning
limit_spinning()
import torch
"""
NOTEBOOK = """
import torch
from classic_cnns import build, compose
build(compose("model=simple_cnn", "data=mnist"))
"""
USED = """
import os, threading, time
work = torch.zeros(2**20)
end = time.monotonic() + 60
while time.monotonic() < end and not any("sleep" in t.name for t in threading.enumerate()):
    work.add_(1)
time.sleep(1)  # the thread has only been announced
print(os.environ["GOMP_SPINCOUNT"], time.monotonic() < end)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("started", [COMMAND, NOTEBOOK], ids=["command", "notebook"])
def test_a_process_that_lacks_cores_stops_spinning(started):
    loops = [subprocess.Popen(BUSY_LOOP) for _ in range(CORES)]
    try:
        assert python(started + USED).split() == [str(spinning.SPIN_COUNT), "True"]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_the_user_s_variables_have_precedence(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = active_count()
    for name, value in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            spinning.limit_spinning()
            assert os.environ.get(name) == value
            assert os.environ.get("GOMP_SPINCOUNT") == (value if name[0] == "G" else None)
    assert active_count() == before


def test_a_kernel_without_times_gets_a_fixed_limit(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(spinning, "times", lambda: (0.0, 0.0))
    before = active_count()
    spinning.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(spinning.FIXED_SPIN_COUNT)
    assert active_count() == before


@pytest.mark.parametrize(("waits", "expected"), [
    ([0.0] * 40, []),
    ([0.2] * 40, []),  # of the time: noise of an idle machine
    ([0.0, 0.02, 0.05, 0.5] * 10, []),  # ends of short epochs
    ([0.0] * 5 + [0.6] * 5 + [0.0] * 30, ["start", "end"]),
    ([0.6] * 5 + [0.0, 0.02, 0.05, 0.3] * 10, ["start", "end"]),
    ([0.6] * 5 + [0.2] * 30, ["start"]),  # not calm enough
    ([0.6] * 5 + ([0.0] * 4 + [1.5]) * 6, ["start"]),  # not for long enough
])  # fmt: skip
@pytest.mark.parametrize("bfloat16", [False, True])
def test_other_threads_sleep_while_these_wait_and_end_when_it_is_calm(
    monkeypatch, caplog, bfloat16, waits, expected
):
    monkeypatch.setattr(spinning.Watch, "bfloat16", bfloat16)
    seen: list[str] = []
    moment, waited, shares = [0.0], [0.0], iter(waits)

    class End:
        def set(self) -> None:
            seen.append("end")

    def start_sleepers(threads: int) -> End:
        seen.append("start")
        return End()

    def sleep(seconds: float) -> None:
        moment[0] += seconds
        waited[0] += seconds * next(shares)

    monkeypatch.setattr(spinning, "start_sleepers", start_sleepers)
    monkeypatch.setattr(spinning, "thread_count", lambda: 2)
    monkeypatch.setattr(spinning, "times", lambda: (1.0, waited[0]))
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    with pytest.raises(StopIteration):
        spinning.Watch().run()
    assert seen == expected
    advised = bfloat16 and "start" in expected
    assert ["OMP_NUM_THREADS=1" in message for message in caplog.messages] == [True] * advised
    assert spinning.Watch.bfloat16 == (bfloat16 and not advised)  # only once


def test_the_time_that_threads_run_is_that_of_the_process():
    start, before = time.process_time(), spinning.times()[0]
    while time.process_time() < start + 0.3:
        pass
    if sum(spinning.times()):
        assert spinning.times()[0] - before == pytest.approx(0.3, abs=0.1)
