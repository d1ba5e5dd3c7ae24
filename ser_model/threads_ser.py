"""One thread for a small network, without a word to the rest of the program."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """
    Within it, PyTorch computes on the calling thread alone, as so many small steps take far longer on several, above all
    beside other programs. Other threads compute as before, and so does this one afterwards.
    """
    before = torch.get_num_threads()  # which gives a new thread the program's number, and would otherwise do so later
    set_openmp, set_mkl = _own_settings()
    set_openmp(1)
    mkl_before = set_mkl(1)
    try:
        yield
    finally:
        set_mkl(mkl_before)
        set_openmp(before)


@functools.cache
def _own_settings() -> tuple:
    """
    What sets how many threads the calling thread computes on: with OpenMP, and with MKL, which returns what was set before.
    `torch.set_num_threads` sets both, but also what all threads to come begin with. It is for Windows, where neither can be
    reached.
    """
    library = ctypes.CDLL(torch._C.__file__)  # and with it all that torch itself has loaded
    set_openmp = getattr(library, "omp_set_num_threads", torch.set_num_threads)
    return set_openmp, getattr(library, "MKL_Set_Num_Threads_Local", lambda _: None)
