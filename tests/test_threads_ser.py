"""An answer takes one thread, whatever the rest of the program computes on, and the rest of the program does not notice."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ser_model import SerPipeline
from ser_model.pretrained import load_pipeline
from ser_model.threads_ser import one_thread
from tests.conftest import make_voice

OTHERS = 3  # threads that the rest of the program computes on


@pytest.fixture(autouse=True)
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(OTHERS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seen():
    """How many threads torch had whenever features were computed, or the network was called."""
    return []


@pytest.fixture
def classifier(tiny_model, extractor, seen):
    class Watched(type(extractor)):
        def __call__(self, *args, **kwargs):
            seen.append(torch.get_num_threads())
            return super().__call__(*args, **kwargs)

    tiny_model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    return SerPipeline(model=tiny_model, feature_extractor=Watched(), task="audio-classification")


def in_a_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_holds_for_this_thread_alone_and_until_it_ends():
    with one_thread():
        assert torch.get_num_threads() == 1
        assert in_a_new_thread(torch.get_num_threads) == OTHERS
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == OTHERS
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == OTHERS


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_computes_on_one_thread_and_calls_back_on_all(classifier, seen, batch_size):
    around = []

    def look(*_):
        around.append(torch.get_num_threads())

    def recordings():
        for seed in range(4):
            look()
            yield make_voice(5.0, seed=seed)

    for _ in classifier(recordings(), batch_size=batch_size, on_window=look):
        look()
    classifier(list(recordings()), batch_size=batch_size, on_window=look)
    with pytest.raises(ValueError, match="sampling rate"):
        classifier({"array": make_voice(1.0), "sampling_rate": -1})
    look()
    assert len(seen) >= 12 and set(seen) == {1}
    assert len(around) >= 21 and set(around) == {OTHERS}


def test_several_threads_ask_at_once(classifier, seen):
    start = threading.Barrier(4)

    def ask(seed):
        start.wait(10)
        classifier(make_voice(1.0, seed=seed))
        return torch.get_num_threads()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {OTHERS}
    assert set(seen) == {1}
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == OTHERS


STRANGER = """
import resource, sys, time
import numpy as np, torch
from transformers import pipeline

torch.set_num_threads(4)
stereo = np.stack([np.load("voice.npy")] * 2, 1)


def load():
    return pipeline("audio-classification", model="saved", trust_remote_code=True)


def ask(classifier):
    classifier([{"array": stereo, "sampling_rate": 48000}] * 3, batch_size=2)
    classifier({"array": stereo, "sampling_rate": 48000})


classifier = load()
for _ in range(3):
    ask(classifier)
of_thread, of_process = -time.thread_time(), -time.process_time()
ask(classifier)
print((of_process + time.process_time()) / (of_thread + time.thread_time()), torch.get_num_threads())
sizes = []
for _ in range(10):
    load()
    sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(sizes[-1] - sizes[2])
"""


def test_a_stranger_hears_on_one_thread_and_loads_without_leaking(tmp_path):
    """With the shipped network, whose steps are long enough for several threads, in a program that knows nothing of it."""
    load_pipeline().save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "voice.npy", make_voice(8.0, rate=48000))
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    used, grown = done.stdout.splitlines()[-2:]
    share, num_threads = used.split()
    assert float(share) < 1.1, "other threads took time as well"
    assert int(num_threads) == 4
    assert int(grown) < 20_000, "kB in 7 loads"
