"""Who computes when: short work has a lane of its own, so that nobody with a short recording waits behind a long one."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

# What takes more than either is long. A recording of three minutes takes 0.7 s, picture included.
SHORT_CPU_S, SHORT_SOUND_S = 1.0, 180.0


class BusyError(Exception):
    """Too much is waiting already."""


class Places:
    """So many at a time, first come first served: a semaphore would let someone who comes again overtake who waits."""

    def __init__(self, count: int):
        self._free, self._waiting, self._lock = count, deque(), threading.Lock()

    def take(self, *, max_waiting: float = float("inf")) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            if len(self._waiting) >= max_waiting:
                raise BusyError
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Lanes:
    """
    Args:
        short, long: How many may compute at a time in each lane.
        max_waiting: How many may wait in the long lane; the short one is as long as Gradio lets it be.
    """

    def __init__(self, *, short: int, long: int, max_waiting: int):
        self.short, self.long, self.max_waiting = Places(short), Places(long), max_waiting

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[float], None]]:
        """
        Waits for a place in the short lane and gives what is to be called now and then, with the seconds of sound
        that have been heard: work that has proved long waits there for a place in the long lane.

        Work is counted in CPU time of the calling thread, as a small file may be much work, and its header may lie.

        Raises:
            `BusyError`: work has proved long, and `max_waiting` wait in the long lane.
        """
        lane = self.short
        lane.take()
        started_s = time.thread_time()

        def go_on(heard_s: float) -> None:
            nonlocal lane
            if lane is self.short and (heard_s > SHORT_SOUND_S or time.thread_time() - started_s > SHORT_CPU_S):
                lane.leave()
                lane = None
                self.long.take(max_waiting=self.max_waiting)
                lane = self.long

        try:
            yield go_on
        finally:
            if lane:
                lane.leave()
