"""Guards of a run that goes on: a stop that was asked for, a process that hangs, gradients that explode.

In: a signal, the beats of each process, the norms of the gradients. Out: `Stopped`, or the end of the process with a
sentence that names who hangs. Nothing is started before a run trains, and nothing is left when it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

STOPPED = 143  # 128 + SIGTERM, the exit status of a program that SIGTERM ended
HUNG = 124  # as of timeout(1)
EXPLODED_BEFORE = 16  # norms without which nobody can say what is usual
SHARE = 0.9  # of the time limit: who watches speaks before the collective operations give up without a name


class Stopped(SystemExit):
    """A run that was asked to stop, and has written a checkpoint; ends the program with status 143."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopSignal:
    """Whether SIGTERM has come, between `begin` and `end`. SLURM and spot machines send it before they end a job."""

    def __init__(self) -> None:
        self.is_asked = False
        self._earlier: Any = None

    def begin(self) -> None:
        """Takes SIGTERM from here on; a thread that is not the main one cannot, and leaves it as it is."""
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGTERM, self._ask)

    def end(self) -> None:
        """Gives SIGTERM back to whoever had it."""
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)
            self._earlier = None

    def _ask(self, number: int, frame: Any) -> None:
        self.is_asked = True


def heed_parent_only() -> None:
    """Lets SIGTERM end this process only if its parent sent it."""
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, name="sigterm", daemon=True).start()


class Norms:
    """The gradient norms of the last steps, against which a new one is held.

    >>> norms = Norms(limit=1000)
    >>> [norms.exceeds(1.0) for _ in range(16)] == [None] * 16, norms.exceeds(900.0), norms.exceeds(2000.0)
    (True, None, 1.0)
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.recent: deque[float] = deque(maxlen=64)

    def exceeds(self, norm: float) -> float | None:
        """The median of the last norms, where this one is more than `limit` times as large; else remembers this one."""
        usual = median(self.recent) if len(self.recent) >= EXPLODED_BEFORE else 0.0
        if self.limit and usual and norm > self.limit * usual:
            return usual
        if norm > 0:  # a step without targets has none
            self.recent.append(norm)
        return None


class Watchdog:
    """Ends the process where nothing has moved for almost `limit` seconds, and says which process stands still.

    Every process tells its beats, and the others read them from the store through which the processes once met. Where
    all wait for one, it is the one with the fewest beats. Each process that can shows the line at which it stands.
    """

    def __init__(self, limit: float, rank: int, world_size: int, leave: Callable[[int], Any] = os._exit) -> None:
        self.limit, self.rank, self.world_size, self._leave = limit * SHARE, rank, world_size, leave
        self._beats, self._since, self._doing = 0, time.monotonic(), "training"
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: Any = _store() if world_size > 1 else None

    def begin(self) -> None:
        self._end.clear()
        self.beat(self._doing)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def beat(self, doing: str) -> None:
        """Tells that this process is alive, and what it begins now."""
        self._beats, self._since, self._doing = self._beats + 1, time.monotonic(), doing

    def _watch(self) -> None:
        pause = min(5.0, self.limit / 20)
        while not self._end.wait(pause):
            silent = time.monotonic() - self._since
            told = self._exchange()
            if silent >= self.limit:
                self._report(silent, told)
                if self.rank == 0:
                    self._end.wait(2 * pause)  # it keeps the store, from which the others still read
                self._leave(HUNG)
                return

    def _exchange(self) -> dict[int, dict[str, Any]]:
        """Tells the beats of this process, and gives those of all; nothing where the store's process is gone."""
        if self._store is None:
            return {}
        try:
            self._tell()
            return {rank: self._told(rank) for rank in range(self.world_size)}
        except RuntimeError:
            return {}

    def _tell(self) -> None:
        about = {"beats": self._beats, "doing": self._doing, "host": socket.gethostname(), "pid": os.getpid()}
        self._store.set(f"coh/beats/{self.rank}", json.dumps(about))

    def _told(self, rank: int) -> dict[str, Any]:
        name = f"coh/beats/{rank}"
        unknown = {"beats": -1, "doing": "starting", "host": "?", "pid": "?"}
        return json.loads(self._store.get(name)) if self._store.check([name]) else unknown

    def _report(self, silent: float, told: dict[int, dict[str, Any]]) -> None:
        last = min((one["beats"] for one in told.values()), default=0)
        behind = [rank for rank, one in told.items() if one["beats"] == last]
        who = f"rank {self.rank} of {self.world_size} has stood still for {silent:.0f} s in {self._doing}"
        if 0 < len(behind) < self.world_size:
            names = ", ".join(
                f"rank {r} (pid {told[r]['pid']} on {told[r]['host']}, in {told[r]['doing']})" for r in behind
            )
            who += f"; it waits for {names}, which hangs" if self.rank not in behind else ": it hangs, others wait"
        print(f"coh: {who}. The run ends (--ddp_timeout); this process stands here:", file=sys.stderr, flush=True)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        print("".join(traceback.format_stack(frame)), file=sys.stderr, flush=True)


def _store() -> Any:
    """A connection of our own to the store of the process group, since another one may be waited on."""
    return torch.distributed.distributed_c10d._get_default_store().clone()
