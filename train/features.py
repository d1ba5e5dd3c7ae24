"""
Features of a dataset's clips, computed once and kept in the cache of `datasets`.

`python -m train.features` writes a recipe's features to a table for other programs.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm import tqdm

from ser_model import SerFeatureExtractor
from ser_model.audio import AudioError, read_audio
from ser_model.results import check_output, columns_of, is_stream, output_file, whole_file

from . import corpus as corpora
from .augment import change
from .outside import add_noise
from .recipe import Recipe, Variant, load_recipe

# What an extractor gives of one clip: `input_features` (num_frames, feature_size) and, if it gives them, `statistics`
# (num_rows, num_columns), float32.
Clip = dict[str, np.ndarray]
CHECKSUM = "checksum"  # of a clip's features in the cache: Arrow would not notice damage


class CacheError(ValueError):
    """Why features cannot be kept, in one sentence."""


def recipe_features(
    recipe: Recipe, rows: list[dict], *, fingerprints: dict[str, str]
) -> tuple[SerFeatureExtractor, dict[Variant, list[Clip]]]:
    """
    A recipe's extractor, and the features of the clips of `rows` as `extract_features` gives them, a corpus at a time, so
    that another one beside it computes none anew; those that are normalised over the training clips wait for that (see
    `fit_normalization`).

    Args:
        fingerprints: Of the corpora, as `corpus.fingerprints` gives them.
    """
    extractor = SerFeatureExtractor(**recipe.features)
    settings = {**extractor.to_dict(), "normalize": None if extractor.normalize == "dataset" else extractor.normalize}
    raw = SerFeatureExtractor.from_dict(settings)
    features = {}
    for corpus, fingerprint in fingerprints.items():
        numbers = [i for i, row in enumerate(rows) if row["corpus"] == corpus]
        dataset = datasets.Dataset.from_dict({"audio": [{"path": rows[i]["path"]} for i in numbers]})
        found = extract_features(dataset, raw, variants=recipe.augmentation.variants, data_fingerprint=fingerprint)
        for variant, clips in found.items():
            features.setdefault(variant, {}).update(zip(numbers, clips))
    return extractor, {variant: [clips[i] for i in range(len(rows))] for variant, clips in features.items()}


def extract_features(
    dataset: datasets.Dataset, extractor: SerFeatureExtractor, *, variants: tuple[Variant, ...], data_fingerprint: str
) -> dict[Variant, list[Clip]]:
    """
    Args:
        dataset: With a column `audio` of paths, as text or bytes.
        variants: In which training hears the clips.
        data_fingerprint: Names the content of the clips; a change of it, of a parameter of the extractor, of the variants
            or of what the code makes of them computes the features anew, otherwise they are read from the cache.

    Returns:
        For each variant, and for the clips as they are, the features of each clip in the dataset's order.

    Raises:
        `ser_model.audio.AudioError`: a clip cannot be read.
        `CacheError`: the cache cannot be written.
    """
    features, chosen = {}, {Variant(): None, **dict.fromkeys(variants)}
    with tqdm(total=len(chosen) * len(dataset), desc="Features", unit="clip", disable=None) as bar:
        for variant in chosen:
            settings = [_probe(extractor, variant), data_fingerprint, extractor.to_dict(), vars(variant)]
            fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
            one = functools.partial(_extract_one, extractor=extractor, variant=variant)
            features[variant] = _recall_or_compute(dataset, one, extractor, fingerprint, on_clip=bar.update)
            bar.update(len(features) * len(dataset) - bar.n)
    return features


def _recall_or_compute(
    dataset: datasets.Dataset, one: Callable, extractor: SerFeatureExtractor, fingerprint: str, *, on_clip: Callable
) -> list[Clip]:
    """
    What `one` gives of each row, kept in a place said outright, since rows in memory have no file beside which `datasets`
    would keep what comes of them.
    """
    widths = {"input_features": extractor.feature_size}
    if extractor.statistics:
        widths["statistics"] = extractor.num_statistics[-1]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "ser-features" / f"{fingerprint}.arrow"
    if path.exists():
        # What is damaged, in one of many ways, is computed and written anew.
        with contextlib.suppress(Exception):
            return _read_clips(datasets.Dataset.from_file(str(path)), widths, num_clips=len(dataset))

    def compute(row: dict) -> dict:
        values = one(row)
        on_clip()
        return values

    kinds = {name: datasets.Sequence(datasets.Value("float32")) for name in widths}
    with _writing(path) as partial, _without_bars():
        table = dataset.map(
            compute,
            remove_columns=dataset.column_names,
            features=datasets.Features({**kinds, CHECKSUM: datasets.Value("uint32")}),
            cache_file_name=partial,
            load_from_cache_file=False,
            new_fingerprint=fingerprint,
        )
        del table  # Windows moves no file that is open
    return _read_clips(datasets.Dataset.from_file(str(path)), widths, num_clips=len(dataset))


def _read_clips(dataset: datasets.Dataset, widths: dict[str, int], *, num_clips: int) -> list[Clip]:
    """
    Raises:
        Anything: these are not the clips that were written.
    """
    table = dataset.data.table
    table.validate(full=True)  # else a wrong length would be read beyond the end
    clips = []
    for *values, checksum in zip(*([v for chunk in table[name].chunks for v in chunk] for name in (*widths, CHECKSUM))):
        arrays = [v.values.to_numpy() for v in values]
        if checksum.as_py() != _checksum(arrays):
            raise ValueError("A clip's features are not those that were written.")
        clips.append({name: array.reshape(-1, width) for (name, width), array in zip(widths.items(), arrays)})
    if len(clips) != num_clips:
        raise ValueError(f"There are {len(clips)} clips, not {num_clips}.")
    return clips


def _checksum(arrays: Iterable[np.ndarray]) -> int:
    return functools.reduce(lambda checksum, array: zlib.crc32(array, checksum), arrays, 0)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[str]:
    """
    Where to write what is at `path` in the end. What goes wrong, a full disk first of all, becomes a `CacheError`, and leaves
    nothing behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            yield os.path.join(folder, path.name)
            os.replace(os.path.join(folder, path.name), path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise CacheError(
            f"{path.parent} could not be written ({reason}): make room there, or name another place in HF_DATASETS_CACHE, "
            "and give the same command again."
        ) from error


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Without those of `datasets`, one a variant."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def clip_features(extractor: SerFeatureExtractor, waveform: np.ndarray) -> Clip:
    """What the extractor gives of one waveform, (num_samples,) at its rate."""
    features = extractor(waveform, sampling_rate=extractor.sampling_rate)
    return {name: values[0] for name, values in features.items() if name != "attention_mask"}


def _probe(extractor: SerFeatureExtractor, variant: Variant) -> list:
    """
    Features of a rising tone in noise, which tell two versions of the code apart: the mean over time, three frames, and the
    mean of each row of statistics, so few and so rounded that another number of threads gives the same. A change of how
    files are read is not among it.
    """
    rate = extractor.sampling_rate
    time = np.arange(rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 400 * time) * time) * np.hanning(rate)
    waveform = add_noise(tone.astype(np.float32), np.random.default_rng(0), snr_db=20.0)
    waveform = change(waveform, rate, variant, seed=0)
    clip = clip_features(extractor, waveform)
    features, statistics = clip["input_features"], clip.get("statistics", np.zeros((1, 1)))
    frames = features[np.linspace(0, len(features) - 1, 5).round().astype(int)[1:4]]
    values = [*np.vstack([features.mean(0), frames]), statistics.mean(1)]
    return [(row.round(1) + 0.0).tolist() for row in values]  # no negative zeros


def _extract_one(row: dict, *, extractor: SerFeatureExtractor, variant: Variant) -> dict:
    path, rate = os.fsdecode(row["audio"]["path"]), extractor.sampling_rate
    waveform = change(read_audio(path, rate), rate, variant, seed=zlib.crc32(os.fsencode(Path(path).stem)))
    features = {name: np.float32(values).ravel() for name, values in clip_features(extractor, waveform).items()}
    return {**features, CHECKSUM: _checksum(features.values())}


def fit_normalization(extractor: SerFeatureExtractor, features: dict, train_rows: np.ndarray) -> dict:
    """
    For an extractor with `normalize="dataset"`: sets its mean and deviation to those of the training clips' frames, and
    returns the features normalised by them. Any other extractor's features are returned as they are.
    """
    if extractor.normalize != "dataset":
        return features
    frames = np.concatenate([features[Variant()][i]["input_features"] for i in train_rows]).astype(np.float64)
    mean, std = frames.mean(0), np.maximum(frames.std(0), 1e-6)
    extractor.mean, extractor.std = (values.astype(np.float32).tolist() for values in (mean, std))
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    return {
        variant: [{**clip, "input_features": (clip["input_features"] - mean) / std} for clip in clips]
        for variant, clips in features.items()
    }


class FeatureDataset(torch.utils.data.Dataset):
    """
    Clips for the Trainer; of one with several variants each, one is drawn anew each time, or all are heard; so is a stretch
    of `max_frames` of a longer one.

    Args:
        chances: How often each clip is drawn; each once an epoch if left out.
        label_masks: Which labels each clip might have had, (num_clips, num_labels).
    """

    def __init__(
        self,
        variants: list[list[Clip]],
        labels: list[int],
        *,
        chances: list[float] | None = None,
        label_masks: list[list[bool]] | None = None,
        every_variant: bool = False,
        max_frames: int | None = None,
    ):
        self.max_frames = max_frames
        self.variants = [sum(variants, [])] if every_variant else variants
        times = len(variants) if every_variant else 1
        self.labels, self.chances = labels * times, chances and chances * times
        self.label_masks = label_masks and label_masks * times

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        variant = torch.randint(len(self.variants), ()).item() if len(self.variants) > 1 else 0
        clip = self.variants[variant][index]
        features = clip["input_features"]
        if self.max_frames and len(features) > self.max_frames:
            first = torch.randint(len(features) - self.max_frames + 1, ()).item()
            features = features[first : first + self.max_frames]
        mask = {} if self.label_masks is None else {"label_mask": self.label_masks[index]}
        return {**clip, **mask, "input_features": features, "labels": self.labels[index]}


def collate(clips: list[dict]) -> dict[str, torch.Tensor]:
    """Clips of different lengths as one batch, zeros after the shorter ones."""
    features = [torch.tensor(clip["input_features"]) for clip in clips]
    num_frames = torch.tensor([len(clip) for clip in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    batch = {
        "input_features": padded,
        "attention_mask": (torch.arange(padded.shape[1]) < num_frames[:, None]).long(),
        "labels": torch.tensor([clip["labels"] for clip in clips]),
    }
    if "label_mask" in clips[0]:
        batch["label_mask"] = torch.tensor([clip["label_mask"] for clip in clips])
    if "statistics" in clips[0]:
        batch["statistics"] = torch.tensor(np.stack([clip["statistics"] for clip in clips]))
    return batch


def export(
    recipe: Recipe, path: Path, *, data_dir: str | dict[str, str] | None = None, allow_incomplete: bool = False
) -> int:
    """
    Writes a recipe's features, before any normalisation over training clips, to `path`: a row a frame, with the clip's
    name and fields, the frame's number, and a column a feature; CSV or Parquet by the suffix. Returns the number of rows.
    """
    rows = corpora.load_training_rows(
        recipe.corpora, data_dir, vocal_channels=recipe.vocal_channels, allow_incomplete=allow_incomplete
    )
    extractor, features = recipe_features(recipe, rows, fingerprints=corpora.fingerprints(rows))
    clips = [clip["input_features"] for clip in features[Variant()]]
    num_frames, fields = [len(clip) for clip in clips], [{"clip": Path(row["path"]).stem, **row} for row in rows]
    names = [name for name in dict.fromkeys(name for field in fields for name in field) if name != "path"]
    columns = {name: np.repeat([field.get(name) for field in fields], num_frames) for name in names}
    columns["frame"] = np.concatenate([np.arange(n) for n in num_frames])
    values = np.concatenate(clips)  # (num_frames, feature_size)
    columns |= {f"feature_{i}": column for i, column in enumerate(values.T)}
    table = datasets.Dataset.from_dict(columns)
    with whole_file(path) as partial:
        (table.to_parquet if path.suffix.lower() == ".parquet" else table.to_csv)(str(partial))
    return len(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.features", description="A recipe's features as a table.")
    parser.add_argument("--recipe", default="ser-base", help="name of a recipe, or a YAML file (default: %(default)s)")
    corpora.add_data_option(parser)
    parser.add_argument(
        "--output", required=True, type=output_file(".csv", ".parquet"), help="table to write: .csv or .parquet"
    )
    parser.add_argument("--allow-incomplete", action="store_true", help="accept fewer recordings than a corpus has")
    options = parser.parse_args(arguments)
    path = Path(options.output)
    try:
        check_output(options.output, is_ours=lambda found: {"clip", "frame", "feature_0"} <= set(columns_of(found)))
        recipe = load_recipe(options.recipe)
        folders = corpora.data_folders(options.data)
        num_rows = export(recipe, path, data_dir=folders, allow_incomplete=options.allow_incomplete)
    except (AudioError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not is_stream(path):
        print(f"{path}: {num_rows} frames.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
