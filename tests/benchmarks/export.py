"""
`python -m tests.benchmarks.export --data DIR`: the exported graphs beside the network, on the speech clips of RAVDESS.

Prints for float32 and int8 the size, and how far their probabilities and answers are from those of the network. Writes the
same to `export.json` beside this file.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ser_model.audio import read_audio
from ser_model.pretrained import DEFAULT
from ser_model.results import write_whole
from ser_model.scoring import find_recordings, load_quietly
from train.export import export, open_session, run

RESULTS = Path(__file__).with_suffix(".json")
SPEECH = "03-01-"  # how the names of RAVDESS's speech clips begin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.export", description=__doc__)
    parser.add_argument("--data", required=True, help="a folder that holds RAVDESS")
    options = parser.parse_args()
    classifier = load_quietly(DEFAULT)
    extractor = classifier.feature_extractor
    paths = [path for path in find_recordings(options.data) if Path(path).name.startswith(SPEECH)]
    rows = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sessions = {}
        for name in ("float32", "int8"):
            path = Path(folder) / f"{name}.onnx"
            export(DEFAULT, path, int8=name == "int8")
            sessions[name] = open_session(path)
            rows[name] = {"num_bytes": path.stat().st_size}
        found = {name: [] for name in ("network", *sessions)}
        for path in tqdm(paths, unit="file"):
            clip = read_audio(path, extractor.sampling_rate)
            inputs = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            found["network"].append(classifier.model(**inputs).logits.softmax(-1)[0].numpy())
            for name, session in sessions.items():
                found[name].append(run(session, [clip])[0])
    expected = np.array(found["network"])
    for name, row in rows.items():
        difference = np.abs(np.array(found[name]) - expected)
        row["largest_difference"] = float(f"{difference.max():.2g}")
        row["mean_difference"] = float(f"{difference.mean():.2g}")
        row["same_answers"] = int((np.argmax(found[name], 1) == expected.argmax(1)).sum())
        print(
            f"{name:<8}{row['num_bytes'] / 1e6:>5.1f} MB, probabilities differ by {row['mean_difference']:.1e} on average and "
            f"{row['largest_difference']:.1e} at most, same answer on {row['same_answers']} of {len(paths)} clips"
        )
    content = {"recipe": DEFAULT, "num_clips": len(paths), **rows}
    write_whole(RESULTS, f"{json.dumps(content, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
