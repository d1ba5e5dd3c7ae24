"""
`python tests/benchmarks/run.py`: how quick, big and hungry this project is beside what people would use instead.

Every system is a process of its own (`worker.py`), so that memory and start-up are its own. All of them stay up and are asked
in turn, round after round, so that a noisy machine hits all alike; figures are medians over the rounds. Two passes: one
thread, and all cores.

With `--keras-python`, a Python in whose environment `requirements-benchmarks.txt` is installed, openSMILE and five published
RAVDESS networks in Keras are measured, too. Prints a table, writes `results.json` beside this file and the table in docs/benchmarks.md.
`--quick` looks only whether everything runs: few rounds, nothing is written. It needs Linux, which tells a process's peak memory.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from ser_model.results import write_whole  # noqa: E402
from tests.benchmarks.worker import NUM_VOICES  # noqa: E402
from tests.conftest import make_voice  # noqa: E402

RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "benchmarks.md"
CLIP_S = 4.0
# In the order of the table: the function that makes it, and what people call it.
OURS = "torch_systems:ser_base"
SYSTEMS = {
    OURS: "ser-base, one network",
    "torch_systems:wav2vec2_base": "wav2vec2-base",
    "torch_systems:wavlm_base": "WavLM-base",
    "torch_systems:hubert_large": "HuBERT-large",
    "torch_systems:ast": "AST",
    "torch_systems:librosa_features": "librosa: mel and MFCC",
}
OTHER_SYSTEMS = {
    "other_systems:opensmile_egemaps": "openSMILE: eGeMAPS",
    "other_systems:cnn_bilstm_attention": "CNN, BiLSTM, attention (Keras)",
    "other_systems:cnn_bilstm_transformer": "CNN beside BiLSTM and transformer (Keras)",
    "other_systems:bilstm": "BiLSTM (Keras)",
    "other_systems:cnn_bilstm": "CNN, BiLSTM (Keras)",
    "other_systems:cnn_descriptors": "CNN on descriptors (Keras)",
}
CALLS = {
    "path": "path to label (48 kHz stereo)",
    "waveform": "waveform to label",
    "read": "reading and resampling alone",
    "extractor": "features alone",
    "frames": "features of frames, without statistics of the clip",
    "network": "network alone",
    "usual": "features alone, as usually called",
}
NUM_ROUNDS = 7
TURN_S = 0.1  # a quick system answers as often as fits; a slow one once
# A system that would hear them all in `MANY_S` gets all clips; a slower one as many as it hears in about `FEW_S`.
NUM_CLIPS, MANY_S, FEW_S = 1000, 12.0, 2.0
BATCH_SIZES = (1, 4, 16, 64, 256)
LENGTHS_S = (1, 4, 10, 60, 600, 3600)


class Worker:
    """One resident system."""

    def __init__(self, system: str, *, python: str, folder: Path, threads: int):
        self.system = system
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        # Nothing else is set: made to sleep as soon as they wait, OpenMP's threads cost 20 ms a clip that nobody pays.
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        self.log = folder / f"{system.partition(':')[2]}.log"
        start = time.perf_counter()
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [python, "-m", "tests.benchmarks.worker", system, str(folder), str(threads)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.about = self._reply()
        self.about["start_s"] = time.perf_counter() - start

    def call_ms(self, name: str) -> float:
        return 1000 * self._ask(ask="call", name=name, for_s=TURN_S)["seconds"]

    def many_s(self, name: str, num_clips: int) -> float:
        return self._ask(ask="many", name=name, num_clips=num_clips)["seconds"]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _ask(self, **request) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            reason = (self.log.read_text(encoding="utf-8").strip().splitlines() or ["nothing was said"])[-1]
            raise SystemExit(f"{self.system} stopped: {reason}")
        return json.loads(line)


def write_clips(folder: Path) -> None:
    """What `worker.Clips` reads."""
    clip = make_voice(CLIP_S, rate=48000)
    soundfile.write(folder / "clip.wav", np.stack([clip, clip], 1), 48000)
    for rate in (16000, 22050):
        voices = [make_voice(CLIP_S, rate=rate, seed=seed, pitch_hz=90 + 5 * seed) for seed in range(NUM_VOICES)]
        np.save(folder / f"voices-{rate}.npy", voices)


def measure(pythons: dict[str, str], folder: Path, *, threads: int, num_rounds: int, num_clips: int) -> dict[str, dict]:
    """Of each system with this many threads: `about` it, `calls_ms` and `clips_a_second` by name."""
    workers = []
    try:
        for system, python in pythons.items():
            print(f"{threads} thread(s): starting {system.partition(':')[2]}", flush=True)
            workers.append(Worker(system, python=python, folder=folder, threads=threads))
        turns = [(worker, call) for worker in workers for call in worker.about["calls"]]
        calls_ms = {turn: [] for turn in turns}
        for number in range(num_rounds):
            print(f"{threads} thread(s): round {number + 1} of {num_rounds}", flush=True)
            for worker, call in turns if number % 2 else turns[::-1]:
                calls_ms[worker, call].append(worker.call_ms(call))
        rates = _measure_many(workers, calls_ms, num_clips=num_clips, num_rounds=min(3, num_rounds))
        return {
            worker.system: {
                **worker.about,
                "calls_ms": {call: statistics.median(calls_ms[worker, call]) for call in worker.about["calls"]},
                **rates[worker],
            }
            for worker in workers
        }
    finally:
        for worker in workers:
            worker.stop()


def _measure_many(workers: list[Worker], calls_ms: dict, *, num_clips: int, num_rounds: int) -> dict[Worker, dict]:
    """Clips a second, one by one and, where there is such a way, in batches, and of how many clips that is."""
    turns = {}
    for worker in workers:
        call = "waveform" if "waveform" in worker.about["calls"] else "extractor"
        clip_s = statistics.median(calls_ms[worker, call]) / 1000
        fitting = num_clips if num_clips * clip_s < MANY_S else max(2, min(num_clips, round(FEW_S / clip_s)))
        for way in ("one by one", "batches"):
            if way in worker.about["many"]:
                turns[worker, way] = (fitting, [])
    for number in range(num_rounds):
        print(f"clips a second: round {number + 1} of {num_rounds}", flush=True)
        for (worker, way), (fitting, took_s) in turns.items() if number % 2 else reversed(turns.items()):
            took_s.append(worker.many_s(way, fitting))
    rates = {worker: {"num_clips": 0, "clips_a_second": {}} for worker in workers}
    for (worker, way), (fitting, took_s) in turns.items():
        rates[worker]["num_clips"] = fitting
        rates[worker]["clips_a_second"][way] = fitting / statistics.median(took_s)
    return rates


def measure_growth(folder: Path, *, num_rounds: int, lengths_s: tuple, num_clips: int) -> dict:
    """Our cost, on one thread, against the length of a recording and against the size of a batch."""
    worker = Worker(OURS, python=sys.executable, folder=folder, threads=1)
    try:
        by_length = {length_s: [] for length_s in lengths_s}
        by_batch = {size: [] for size in BATCH_SIZES}
        for _ in range(num_rounds):
            for length_s, took in by_length.items():
                repeats = max(1, 20 // length_s)
                seconds = [worker.many_s("seconds", length_s) for _ in range(repeats)]
                took.append(1000 * statistics.median(seconds) / length_s)
            for size, took in by_batch.items():
                took.append(1000 * worker.many_s(f"batches of {size}", max(size, num_clips)) / max(size, num_clips))
    finally:
        worker.stop()
    return {
        "ms_for_a_second_by_length_s": {str(k): round(statistics.median(v), 3) for k, v in by_length.items()},
        "ms_for_a_clip_by_batch_size": {str(k): round(statistics.median(v), 3) for k, v in by_batch.items()},
    }


def machine() -> dict:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory_kb = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory_kb[1]) * 1024 / 1e9),
    }


def versions(keras_python: str | None) -> dict:
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "torchaudio", "transformers", "librosa", "numpy", "soxr")}
    if keras_python:
        names = ("tensorflow-cpu", "keras", "librosa", "opensmile")
        ask = f"import json; from importlib.metadata import version as v; print(json.dumps([v(n) for n in {names}]))"
        others = json.loads(subprocess.check_output([keras_python, "-c", ask], text=True))
        found["beside TensorFlow"] = dict(zip(names, others))
    return found


def as_rows(one: dict, every: dict, names: dict[str, str]) -> list[dict]:
    """A row a system and call, as in `results.json`."""
    rows = []
    for system, name in names.items():
        first, second = one[system], every[system]
        rows.append(
            {
                "system": name,
                "memory_mb": round(first["peak_mb"]),
                "checkpoint_mb": None if first["num_bytes"] is None else round(first["num_bytes"] / 1e6, 1),
                # The files were in the cache the second time at the latest.
                "start_s": round(min(first["start_s"], second["start_s"]), 1),
                "calls": [
                    {
                        "call": CALLS[call],
                        "one_thread_ms": round(first["calls_ms"][call], 2),
                        "all_threads_ms": round(second["calls_ms"][call], 2),
                    }
                    for call in first["calls"]
                ],
                "clips_a_second": {
                    way: {
                        "one_thread": round(first["clips_a_second"][way], 1),
                        "all_threads": round(second["clips_a_second"][way], 1),
                    }
                    for way in sorted(first["clips_a_second"], reverse=True)
                },
                "num_clips": min(first["num_clips"], second["num_clips"]),
            }
        )
    return rows


def check_targets(one: dict, every: dict) -> list[dict]:
    """What this project wants of itself, as ratios of one run, on one thread where nothing else is said."""
    ours, rates = one[OURS]["calls_ms"], one[OURS]["clips_a_second"]
    all_rates = every[OURS]["clips_a_second"]
    librosa = one["torch_systems:librosa_features"]["calls_ms"]
    wav2vec2 = one["torch_systems:wav2vec2_base"]["calls_ms"]["waveform"]
    ast = one["torch_systems:ast"]["calls_ms"]["extractor"]
    parts, features_and_network = ours["read"] + ours["network"], ours["extractor"] + ours["network"]
    targets = [
        (
            "waveform to label, is there a voice included, times faster than wav2vec2-base",
            wav2vec2 / ours["waveform"],
            ">=",
            100,
        ),
        ("features and network, times faster than wav2vec2-base", wav2vec2 / features_and_network, ">=", 100),
        ("path to label, times the cost of reading, resampling and network alone", ours["path"] / parts, "<=", 2),
        (
            "features of frames, times faster than librosa's as usually called",
            librosa["usual"] / ours["frames"],
            ">=",
            2,
        ),
        (
            "features of frames, times faster than librosa's, mel made once",
            librosa["extractor"] / ours["frames"],
            ">=",
            2,
        ),
        ("features of frames, times the cost of AST's", ours["frames"] / ast, "<=", 1),
        ("clips a second in batches, times those one by one", rates["batches"] / rates["one by one"], ">=", 3),
        ("the same on all threads", all_rates["batches"] / all_rates["one by one"], ">=", 3),
    ]
    return [
        {
            "target": what,
            "figure": round(figure, 2),
            "wanted": f"{relation} {bound}",
            "met": figure >= bound if relation == ">=" else figure <= bound,
        }
        for what, figure, relation, bound in targets
    ]


def as_table(results: dict) -> str:
    """Markdown, for the terminal as well as for docs/benchmarks.md."""
    lines = [
        "| system | one clip of 4 s: one thread | all threads | clips a second, one thread | memory | weights | start |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results["systems"]:
        calls = {call["call"]: call for call in row["calls"]}
        call = calls.get(CALLS["waveform"]) or calls[CALLS["extractor"]]
        best = max(row["clips_a_second"].values(), key=lambda rate: rate["one_thread"])["one_thread"]
        weights = "-" if row["checkpoint_mb"] is None else f"{row['checkpoint_mb']:,.0f} MB"
        few = "" if row["num_clips"] >= NUM_CLIPS else f" ({row['num_clips']} clips)"
        what = "" if CALLS["waveform"] in calls else ", features only"
        lines.append(
            f"| {row['system']}{what} | {_ms(call['one_thread_ms'])} | {_ms(call['all_threads_ms'])} "
            f"| {best:,.3g}{few} | {row['memory_mb']:,} MB | {weights} | {row['start_s']} s |"
        )
    return "\n".join(lines)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def as_details(results: dict) -> str:
    """Our parts, how the cost grows, and the targets, as a list in Markdown."""
    calls = results["systems"][0]["calls"]
    growth = results["growth"]
    targets = [
        f"{target['target']} {target['figure']:g} (wanted {target['wanted']}{'' if target['met'] else ', **missed**'})"
        for target in results["targets"]
    ]
    lines = {
        "ser-base, one clip on one thread": [f"{call['call']} {_ms(call['one_thread_ms'])}" for call in calls],
        "A second of sound, in a recording of": [
            f"{length} s {_ms(ms)}" for length, ms in growth["ms_for_a_second_by_length_s"].items()
        ],
        "A clip, in batches of": [f"{size}: {_ms(ms)}" for size, ms in growth["ms_for_a_clip_by_batch_size"].items()],
        "Targets": targets,
    }
    return "\n".join(f"- {title}: {'; '.join(items)}." for title, items in lines.items())


def write_page(results: dict) -> None:
    text = PAGE.read_text(encoding="utf-8")
    about = results["machine"]
    section = (
        f"{as_table(results)}\n\n{as_details(results)}\n\n"
        f"On {about['cores']} cores of an {about['cpu']}, {about['memory_gb']} GB."
    )
    new, found = re.subn(
        r"(<!-- benchmark -->\n).*(<!-- /benchmark -->)", lambda m: f"{m[1]}{section}\n{m[2]}", text, flags=re.DOTALL
    )
    if not found:
        raise SystemExit(
            "docs/benchmarks.md has no place for the table: <!-- benchmark --> and <!-- /benchmark --> are missing."
        )
    write_whole(PAGE, new.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras-python", metavar="PATH", help="a Python that has requirements-benchmarks.txt")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    options = parser.parse_args()
    pythons = dict.fromkeys(SYSTEMS, sys.executable)
    if options.keras_python:
        pythons |= dict.fromkeys(OTHER_SYSTEMS, options.keras_python)
    rounds = {"num_rounds": 1, "num_clips": 32} if options.quick else {"num_rounds": NUM_ROUNDS, "num_clips": NUM_CLIPS}
    lengths_s = LENGTHS_S[:3] if options.quick else LENGTHS_S
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_clips(folder)
        one = measure(pythons, folder, threads=1, **rounds)
        every = measure(pythons, folder, threads=len(os.sched_getaffinity(0)), **rounds)
        growth = measure_growth(folder, num_rounds=min(3, rounds["num_rounds"]), lengths_s=lengths_s, num_clips=64)
    results = {
        "machine": machine(),
        "versions": versions(options.keras_python),
        "systems": as_rows(one, every, {system: (SYSTEMS | OTHER_SYSTEMS)[system] for system in pythons}),
        "targets": check_targets(one, every),
        "growth": growth,
    }
    print(f"\n{as_table(results)}\n\n{as_details(results)}\n\nMeasured in {time.monotonic() - started:.0f} s.")
    if not options.quick:
        write_whole(RESULTS, f"{json.dumps(results, indent=1)}\n".encode())
        write_page(results)


if __name__ == "__main__":
    main()
