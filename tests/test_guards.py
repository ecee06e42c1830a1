"""Guards end what should end, let through what should go on, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from coh.guards import HUNG, Norms, StopSignal, Watchdog


def test_sigterm_is_noted_and_given_back():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    stop.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # impatience is no harm
    assert stop.is_asked
    stop.end()
    stop.end()
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone():
    before, stop = signal.getsignal(signal.SIGTERM), StopSignal()
    thread = threading.Thread(target=lambda: (stop.begin(), stop.end()))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_norms_stop_what_explodes_only():
    norms = Norms(100)
    assert norms.exceeds(1e9) is None, "nobody knows yet what is usual"
    assert not any(norms.exceeds(1.0 + n % 5) for n in range(100))
    assert norms.exceeds(0.0) is None and 0.0 not in norms.recent, "a step without targets"
    assert norms.exceeds(250.0) is None
    assert norms.exceeds(350.0) == pytest.approx(3.0) and 350.0 not in norms.recent
    off = Norms(0)
    assert not any(off.exceeds(10.0**n) for n in range(30))


def test_a_watchdog_speaks_and_leaves_where_nothing_moves(capfd):
    left = []
    watchdog = Watchdog(0.5, 0, 1, leave=left.append)
    watchdog.begin()
    for step in range(8):
        watchdog.beat(f"step {step}")
        time.sleep(0.1)
    assert not left, "0.8 s, but never 0.45 s without a beat"
    time.sleep(1)
    watchdog.end()
    assert left == [HUNG]
    said = capfd.readouterr().err
    assert "coh: rank 0 of 1 has stood still for 0 s in step 7." in said
    assert "test_a_watchdog_speaks" in said, "where it stands"


def test_a_watchdog_that_is_ended_says_nothing(capfd):
    watchdog = Watchdog(0.2, 0, 1, leave=lambda status: pytest.fail("left"))
    watchdog.end()
    watchdog.begin()
    watchdog.end()
    time.sleep(0.4)
    assert not capfd.readouterr().err and watchdog not in threading.enumerate()


def test_a_worker_heeds_its_parent_alone():
    code = "from coh.guards import heed_parent_only as h; h(); print('up', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "up\n"
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        time.sleep(0.5)
        assert worker.poll() is None
        worker.terminate()
        assert worker.wait(20) == 0
