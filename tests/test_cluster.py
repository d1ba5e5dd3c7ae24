"""The job for a cluster, on this machine alone."""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import soundfile

from tests.conftest import ROOT, make_voice

pytest.importorskip("ray", reason="the job for a cluster needs requirements-cluster.txt")


def scorer(job: subprocess.Popen) -> psutil.Process | None:
    """A process of the job that has a recording open."""
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(file.path.endswith(".flac") for file in process.open_files()):
                return process
    return None


@pytest.mark.slow
@pytest.mark.timeout(400)  # Ray itself takes half a minute to start where the cores are busy
def test_a_dead_worker_costs_no_file(tmp_path):
    soundfile.write(tmp_path / "00.flac", np.tile(make_voice(10.0), 6), 16000)
    for number in range(1, 40):
        os.link(tmp_path / "00.flac", tmp_path / f"{number:02d}.flac")
    (tmp_path / "broken.wav").write_text("not a sound")
    command = [sys.executable, "-m", "ser_model.cluster", tmp_path, "--output", tmp_path / "out", "--workers", "2"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while (worker := scorer(job)) is None:
            assert job.poll() is None
            time.sleep(0.02)
        worker.kill()
        said = job.communicate()[1]
    finally:
        job.kill()
    assert job.returncode == 0, said
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert Counter(row["path"] for row in rows) == Counter(
        map(str, [*tmp_path.glob("*.flac"), tmp_path / "broken.wav"])
    )
    assert [row["path"] for row in rows if row["error"]] == [str(tmp_path / "broken.wav")]
