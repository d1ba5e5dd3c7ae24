"""
`python -m tests.fuzz_checkpoints`: checkpoints with bad settings, loaded until something gives way.

Each case is a small checkpoint in which one or two settings of config.json or preprocessor_config.json have another value, are
missing, or are there although no setting has that name. It must answer with probabilities or be refused in one sentence that
names the file, within 5 s and 1.5 GB.
"""

import argparse
import json
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from ser_model.checkpoint import CONFIG, EXTRACTOR, read_checkpoint
from ser_model.encoders_ser import ENCODERS
from tests.conftest import make_voice
from tests.test_modeling_ser import make_encoder

MAX_S, MAX_MB = 5, 1500


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


NUMBERS = [0, -1, 1, 2, 3, 7, 16, 255, 256, 4096, 4097, 2**31, 2**63, 10**30, 10**4000, -0.0, 0.5, 1.0, 1e-300, 1e300]
NO_NUMBERS = [float("nan"), float("inf"), -float("inf"), True, False, None]
TEXTS = ["", "1", "many", "../../config.json", "\ud800", "\x1b[2J", "x" * 300_000, "someone/kernel", "float16", "int8"]
LISTS = [
    [],
    [0],
    [-1],
    [1, 2],
    [1, 2, 3],
    [4096] * 3,
    [4096] * 32,
    [1] * 100_000,
    [0.5] * 40,
    [float("nan")] * 3,
    ["a"],
]
VALUES = [*NUMBERS, *NO_NUMBERS, *TEXTS, *LISTS, [[1]], [None], {}, {"a": 1}, {"0": "a"}, nested(50), nested(900)]
# Names that mean something to transformers, to Python or to a hasty writer, and nothing to this network.
FOREIGN = [
    *("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_experts_implementation"),
    *("quantization_config", "torch_dtype", "auto_map", "custom_pipelines", "per_layer_config", "num_labels"),
    *("torchscript", "use_cache", "return_dict", "problem_type", "name_or_path", "base_model_name_or_path"),
    *("rope_scaling", "attribute_map", "transformers_weights", "tie_word_embeddings", "is_encoder_decoder"),
    *("__class__", "__init__", "__post_init__", "validate", "forward", "for_inference", "mel_filters", "_features"),
    *("processor_class", "padding_side", "temprature", "hop_lenght", "kwargs", "self", "trust_remote_code", ""),
]


def mutate(good: dict, generator: random.Random) -> dict:
    content = dict(good)
    for _ in range(generator.choice((1, 1, 1, 2))):
        name = generator.choice([*good, *good, *FOREIGN])
        if generator.random() < 0.05:
            content.pop(name, None)
        else:
            content[name] = generator.choice(VALUES)
    return content


@torch.inference_mode()
def load(folder: Path) -> str:
    """ "answered" or "refused"; anything else is a finding."""
    try:
        network, extractor = read_checkpoint(folder)
    except (OSError, ValueError) as error:
        message = str(error)
        is_sentence = str(folder) in message and "\n" not in message and len(message) < 600 + len(str(folder))
        return "refused" if is_sentence else f"no sentence: {message}"
    voice = make_voice(0.5, rate=extractor.sampling_rate)
    inputs = extractor(voice, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(network.dtype)
    probabilities = network(**inputs).logits.float().softmax(-1)
    return "answered" if probabilities.isfinite().all() else f"answered {probabilities.tolist()}"


def fuzz(folder: Path, encoder: str, *, count: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """How often each outcome came, and the findings."""
    outcomes, findings, generator = {"answered": 0, "refused": 0}, [], random.Random(seed)
    network, extractor = make_encoder(encoder)
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)
    for number in range(count):
        path = folder / generator.choice((CONFIG, EXTRACTOR))
        good = path.read_text(encoding="utf-8")
        content = mutate(json.loads(good), generator)
        path.write_text(json.dumps(content), encoding="utf-8")
        signal.alarm(MAX_S)
        try:
            outcome = load(folder)
        except Exception as error:  # every kind of exception is a finding, and so is that of the alarm
            outcome = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        path.write_text(good, encoding="utf-8")
        if outcome in outcomes:
            outcomes[outcome] += 1
        else:
            findings.append(f"{encoder} {number}: {outcome[:500]}")
    return outcomes, findings


def _too_slow(*_):
    raise TimeoutError(f"more than {MAX_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_checkpoints", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="cases of each encoder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), metavar="NAME")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, _too_slow)
    idle = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (idle + MAX_MB * 2**20,) * 2)
    everything = []
    for encoder in options.encoders:
        with tempfile.TemporaryDirectory() as folder:
            outcomes, findings = fuzz(Path(folder), encoder, count=options.count, seed=options.seed)
        everything += findings
        print(f"{encoder:<28}{outcomes['answered']:>6} answered{outcomes['refused']:>6} refused", flush=True)
    for finding in everything[:100]:
        print(finding)
    return 1 if everything else 0


if __name__ == "__main__":
    sys.exit(main())
