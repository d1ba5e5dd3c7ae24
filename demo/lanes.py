"""Who computes when: short work has a lane of its own, so that nobody with a short recording waits behind a long one."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

# What takes more than either is long. A recording of two minutes takes 0.4 s, picture included.
SHORT_CPU_S, SHORT_SOUND_S = 0.5, 120.0
# Whoever has computed that long lets those go first who wait: a clip of a few seconds takes 0.03 s.
SLICE_CPU_S = 0.1


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

    def pause(self) -> None:
        """Lets everyone go first who waits."""
        if self._waiting:
            self.leave()
            self.take()

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
        started_s = resumed_s = time.thread_time()

        def go_on(heard_s: float) -> None:
            nonlocal lane, resumed_s
            if lane is not self.short:
                return
            now_s = time.thread_time()
            if heard_s > SHORT_SOUND_S or now_s - started_s > SHORT_CPU_S:
                lane.leave()
                lane = None
                self.long.take(max_waiting=self.max_waiting)
                lane = self.long
            elif now_s - resumed_s > SLICE_CPU_S:
                lane.pause()
                resumed_s = now_s

        try:
            yield go_on
        finally:
            if lane:
                lane.leave()
