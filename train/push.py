"""`python -m train.push`: a checkpoint to the Hub, with its code, pipeline and model card, in one commit."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from httpx2 import HTTPError  # what huggingface_hub raises when there is no connection
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from ser_model import SerPipeline
from ser_model.pretrained import load_pipeline

from .card import write_card
from .corpus import DataError, check_may_ship, learnt_corpora

RUN_FILE = "run.json"  # what `train.train` writes last
PROBE_S = 2.0
TOLERANCE = 1e-5
# Written by the Trainer while it trains: a pickle, which nobody should have to load.
LEFT_OVER = ["training_args.bin"]
# What a stranger's process does with the files, in a folder from which this project cannot be imported.
STRANGER = """
import sys
import numpy as np
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

folder = sys.argv[1]
model, info = AutoModelForAudioClassification.from_pretrained(
    folder, trust_remote_code=True, use_safetensors=True, output_loading_info=True
)
if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
    sys.exit(f"the weights do not match the code: {', '.join(wrong)}")
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
inputs = extractor(np.load("probe.npy"), sampling_rate=extractor.sampling_rate, return_tensors="pt")
np.save("logits.npy", model.eval()(**inputs).logits.detach().numpy())
name = type(pipeline("audio-classification", model=folder, trust_remote_code=True)).__name__
if name != "SerPipeline":
    sys.exit(f"its pipeline is {name}")
"""


class PushError(ValueError):
    """Why a checkpoint is not pushed, in one sentence."""


def push(checkpoint: Path, repo_id: str, *, private: bool | None = None) -> str:
    """
    Puts the checkpoint on the Hub as one commit: weights, configuration, extractor, their code, `SerPipeline`, a model
    card with the figures measured for its recipe, and `run.json`.

    Args:
        checkpoint: A folder that `train.train` or `train.finetune` wrote.
        repo_id: `USER/NAME`; made if there is none.
        private: Whether a new repository is private; the user's own setting if left out.

    Returns:
        The address of the repository.

    Raises:
        `PushError`: no token; the checkpoint does not load, does not load again with the same answers, or the Hub
            refuses it.
    """
    check_login(repo_id)
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        stage(checkpoint, repo_id, Path(folder))
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                commit_message=f"Upload {checkpoint.name}",
                delete_patterns=LEFT_OVER,
            )
        except (HTTPError, OSError) as error:
            raise PushError(f"The Hub did not take {repo_id}: {_reason(error)}") from error
    return str(url)


def check_login(repo_id: str) -> None:
    """Refuses, before any work is done, what the Hub would refuse: a name without its user, or no token."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise PushError(f"{repo_id!r} is not a name on the Hub: give USER/NAME.")
    if get_token() is None:
        raise PushError(
            "You are not logged in to the Hub: run `hf auth login` with a token that may write "
            "(https://huggingface.co/settings/tokens), or set HF_TOKEN."
        )
    try:
        HfApi().whoami()
    except (HTTPError, OSError) as error:
        raise PushError(f"The Hub does not let you in: {_reason(error)}") from error


def stage(checkpoint: Path, repo_id: str, folder: Path) -> None:
    """Writes into `folder` what goes to the Hub, and has a fresh process load it and give the same logits."""
    run = _read_run(checkpoint)
    try:
        check_may_ship(learnt_corpora(run))
    except DataError as error:
        raise PushError(f"{checkpoint} is not pushed. {error}") from error
    try:
        classifier = load_pipeline(str(checkpoint))
    except (OSError, ValueError) as error:
        raise PushError(f"{checkpoint} is not pushed, it does not load: {error}") from error
    # The classifier's own entry joins it: the network without its classifier then loads from the Hub as well.
    classifier.model.config.auto_map = {"AutoModel": "modeling_ser.SerModel"}
    classifier.save_pretrained(folder)
    labels = [label for _, label in sorted(classifier.model.config.id2label.items())]
    write_card(run, labels, classifier.feature_extractor.sampling_rate, folder / "README.md", repo_id=repo_id)
    (folder / RUN_FILE).write_text(json.dumps(run) + "\n", encoding="utf-8")
    _check_reload(classifier, checkpoint, folder)


def _read_run(checkpoint: Path) -> dict:
    try:
        return json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PushError(
            f"{checkpoint} is not a finished checkpoint: it has no readable {RUN_FILE}, which train.train and "
            "train.finetune write last."
        ) from error


def _check_reload(classifier: SerPipeline, checkpoint: Path, folder: Path) -> None:
    rate = classifier.feature_extractor.sampling_rate
    t = np.arange(round(PROBE_S * rate)) / rate
    probe = (0.3 * np.sin(2 * np.pi * (150 + 60 * t) * t) * np.sin(2 * np.pi * 3 * t) ** 2).astype(np.float32)
    with torch.inference_mode():
        inputs = classifier.feature_extractor(probe, sampling_rate=rate, return_tensors="pt")
        expected = classifier.model(**inputs).logits.numpy()
    if not np.isfinite(expected).all():
        raise PushError(f"{checkpoint} is not pushed: its answers are NaN or infinite, train it again.")
    with tempfile.TemporaryDirectory() as elsewhere:
        np.save(Path(elsewhere) / "probe.npy", probe)
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, str(folder)], cwd=elsewhere, env=_offline(elsewhere), capture_output=True
        )
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise PushError(f"{checkpoint} is not pushed, a fresh process cannot load it: {' '.join(reason)}")
        found = np.load(Path(elsewhere) / "logits.npy")
    if not np.allclose(found, expected, atol=TOLERANCE, rtol=0):
        raise PushError(f"{checkpoint} is not pushed: loaded again, it gives other logits for the same sound.")


def _offline(cache: str) -> dict[str, str]:
    """The environment for a process with an empty cache and no network, which needs no token either."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    return {**kept, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}


def _reason(error: Exception) -> str:
    """The Hub's own words where it said some; never the request, whose headers hold the token."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"your token may not write there (status {status}): check the name, and the token's rights."
        return error.server_message or f"it answered with status {status}."
    return str(error).strip().splitlines()[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.push", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder that train.train or train.finetune wrote")
    parser.add_argument("--repo-id", required=True, help="USER/NAME on the Hub; made if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="only you see a new repository")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()  # what is wrong with a checkpoint is said here, in one line
    logging.disable_progress_bar()
    try:
        url = push(Path(options.checkpoint), options.repo_id, private=options.private)
    except PushError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Pushed: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
