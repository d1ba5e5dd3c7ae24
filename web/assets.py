"""`python -m web.assets`: puts beside the page what it needs: onnxruntime-web, and a checkpoint as an ONNX graph."""

import argparse
import base64
import hashlib
import json
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from transformers.utils import logging

from demo.hearing import UNSURE_BELOW
from demo.results import ANOTHER, load_results
from ser_model import voice
from ser_model.audio import MIN_DURATION_S
from ser_model.pretrained import DEFAULT, available
from ser_model.results import write_whole
from train.export import check_packages, export, export_voice_detector, open_session

FOLDER = Path(__file__).parent / "assets"
RUNTIME = "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
# SHA-512 in base64, as npm keeps it for this version.
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The build for the processor alone, the smallest of four.
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FETCH_TIMEOUT_S = 60.0  # without a byte


def write_runtime(folder: Path) -> None:
    """
    Fetches onnxruntime-web, checks it and keeps three of its files, unless they are there.

    Raises:
        `OSError`: it could not be fetched or written, or is not what npm's registry had when this was written.
    """
    fetched_from = folder / "runtime.txt"  # written last
    if fetched_from.exists() and fetched_from.read_text(encoding="utf-8") == RUNTIME:
        return
    with tempfile.TemporaryFile() as archive:
        digest = hashlib.sha512()
        try:
            with urllib.request.urlopen(RUNTIME, timeout=FETCH_TIMEOUT_S) as response:
                while piece := response.read(2**20):
                    digest.update(piece)
                    archive.write(piece)
        except OSError as error:
            raise OSError(f"{RUNTIME} could not be fetched: {error}.") from error
        if base64.b64encode(digest.digest()).decode() != INTEGRITY:
            raise OSError(f"{RUNTIME} is damaged or has been changed: its checksum is wrong. Try again.")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as files:
            for name in RUNTIME_FILES:
                write_whole(folder / name, files.extractfile(f"package/dist/{name}").read())
    write_whole(fetched_from, RUNTIME.encode())


def write_model(folder: Path, checkpoint: str = DEFAULT) -> None:
    """
    Exports a checkpoint and the voice detector, and writes for the page what the graph's metadata say, by what a window
    has a voice, and how good the network is if that was measured.

    Raises:
        As `train.export.export`.
    """
    path = folder / "model.onnx"
    export(checkpoint, path)
    settings = open_session(path).get_modelmeta().custom_metadata_map
    about = {name: json.loads(value) for name, value in settings.items()}
    measured = load_results().get(checkpoint, {}) if checkpoint in available() else {}
    if "speaker-independent" in measured:
        about["uar"] = measured["speaker-independent"]["mean"]["uar"]
        if noisy := measured["speaker-independent"].get("conditions", {}).get("noise 10 dB"):
            about["uar_in_noise"] = noisy["uar"]
    if elsewhere := [result for name, result in measured.items() if name.startswith(ANOTHER)]:
        worst = min(elsewhere, key=lambda result: result["mean"]["uar"])
        about["elsewhere"] = {"uar": worst["mean"]["uar"], "num_emotions": len(worst["labels"])}
    if about["voice_only"] and export_voice_detector(folder / "voice.onnx"):
        about["voice"] = {
            "sampling_rate": voice.RATE_HZ,
            "chunk_size": voice.CHUNK_SIZE,
            "context_size": voice.CONTEXT_SIZE,
            "threshold": voice.THRESHOLD,
            "enough_s": voice.VOICE_S,
            "enough_share": voice.VOICE_SHARE,
            "min_duration_s": voice.MIN_DURATION_S,
            "slower": voice.SLOWER,
            "steady_db": voice.STEADY_DB,
        }
    about |= {"min_duration_s": MIN_DURATION_S, "unsure_below": UNSURE_BELOW}
    write_whole(folder / "model.json", json.dumps(about).encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m web.assets", description=__doc__)
    parser.add_argument("--checkpoint", default=DEFAULT, help="as of python -m train.export (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        check_packages()
        FOLDER.mkdir(exist_ok=True)
        write_runtime(FOLDER)
        write_model(FOLDER, options.checkpoint)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
