"""
The demo's example clips, spoken by espeak-ng (`apt-get install espeak-ng`): `python examples/make.py` writes them beside
itself.

They are synthetic voices of this project's own, CC0: a machine's idea of a mood, and no measure of the network.
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

FOLDER = Path(__file__).parent
if str(FOLDER.parent) not in sys.path:
    sys.path.insert(0, str(FOLDER.parent))

from ser_model.audio import read_audio  # noqa: E402
from ser_model.results import whole_file  # noqa: E402

RATE_HZ = 16000
PAUSE_S = 0.4

# name: what is said, one after the other, as (espeak-ng's voice, pitch 0 to 99, words a minute, loudness 0 to 200, text)
CLIPS = {
    "quiet-evening": [("en-us+f2", 40, 120, 70, "The lake is still, and nobody is in a hurry.")],
    "great-news": [("en-us+f4", 88, 190, 160, "We did it! They said yes, can you believe it?")],
    "lost-umbrella": [("en-us+m3", 18, 105, 80, "I left it on the train. It was my father's.")],
    "parking-dispute": [("en-us+m7", 62, 215, 200, "This is my place! Move that car, and move it now!")],
    "noise-in-the-cellar": [("en-us+f3", 95, 230, 110, "Did you hear that? There is somebody down there!")],
    "a-parcel-in-three-voices": [
        ("en-us+f4", 85, 190, 150, "A parcel, for me? What a surprise!"),
        ("en-us+m7", 60, 210, 200, "Who has opened it? Do not touch it!"),
        ("en-us+f2", 20, 110, 70, "It was empty, all along."),
    ],
}


def speak(voice: str, pitch: int, speed: int, loudness: int, text: str) -> np.ndarray:
    """(num_samples,) at `RATE_HZ`."""
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "-a", str(loudness), "--stdout", text]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    return read_audio(io.BytesIO(spoken), RATE_HZ)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python examples/make.py", description=__doc__)
    parser.parse_args(arguments)
    pause = np.zeros(round(PAUSE_S * RATE_HZ), np.float32)
    try:
        for clip, sentences in CLIPS.items():
            waveform = np.concatenate([part for sentence in sentences for part in (pause, speak(*sentence))] + [pause])
            with whole_file(FOLDER / f"{clip}.flac") as partial:
                soundfile.write(partial, waveform / max(1, np.abs(waveform).max()), RATE_HZ, compression_level=1.0)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}. Is espeak-ng installed (apt-get install espeak-ng)?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
