"""Training as several processes, started as a user starts them."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests import shared_training
from tests.conftest import ROOT, make_ravdess
from tests.shared_training import NUM_CLIPS, NUM_EPOCHS
from tests.test_train import TINY, command
from train.train import main

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]

pytestmark = pytest.mark.slow


def run(*command, **environment) -> str:
    """What it prints, without a GPU."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    shared_training.train(folder / "one" / str(NUM_CLIPS), NUM_CLIPS)
    run(*TWO, "-m", "tests.shared_training", folder / "two", NUM_CLIPS, 8)
    return folder


def test_two_processes_learn_what_one_learns(trained):
    one, two = (load_file(trained / name / str(NUM_CLIPS) / "model.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        # A softmax does not see this bias: its gradient is rounding, which Adam blows up.
        if not name.endswith("pooling.scores.bias"):
            np.testing.assert_allclose(two[name], weights, atol=1e-4, err_msg=name)


def test_two_processes_hear_each_clip_once_an_epoch(trained):
    one, other = (json.loads((trained / f"two/8/heard-{process}.json").read_text()) for process in (0, 1))
    assert one["steps"] == other["steps"] == NUM_EPOCHS * NUM_CLIPS // 8
    halves = np.array([one["heard"], other["heard"]]).reshape(2, NUM_EPOCHS, NUM_CLIPS // 2)
    for epoch in range(NUM_EPOCHS):
        assert sorted(halves[:, epoch].ravel()) == list(range(NUM_CLIPS))


def test_two_processes_write_one_run(tmp_path, monkeypatch):
    data = make_ravdess(tmp_path / "ravdess", actors=[1, 2, 3], duration_s=0.3)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    one, two = (command(tmp_path / "tiny.yaml", data, tmp_path / name, "--protocol", "random-split") for name in "12")
    printed = run(*TWO, "-m", "train.train", *two, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    assert printed.count("parameters, trained in") == 1
    assert main(one) == 0
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in "12")
    assert np.shape(two["probabilities"]) == (36, 8) and two["clips"] == one["clips"]
    steps = [[(e["step"], e["learning_rate"]) for e in done["history"] if "loss" in e] for done in (one, two)]
    assert steps[0] == steps[1]
