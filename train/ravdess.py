"""RAVDESS: file names, a `datasets` builder over its folders or its two Zenodo archives, and splits by actor."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import aiohttp  # what `datasets` downloads with
import datasets
import numpy as np
import pyarrow as pa
import soundfile

from ser_model.configuration_ser import EMOTIONS

CITATION = (
    "Livingstone SR, Russo FA (2018). The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS). "
    "PLoS ONE 13(5): e0196391. https://doi.org/10.1371/journal.pone.0196391"
)
LICENSE = "CC BY-NC-SA 4.0"
VOCAL_CHANNELS = ("speech", "song")
INTENSITIES = ("normal", "strong")
STATEMENTS = ("Kids are talking by the door", "Dogs are sitting by the door")
GENDERS = ("male", "female")
ACTORS = range(1, 25)


@dataclass(frozen=True)
class Archive:
    """One of the two archives of Zenodo record 1188976."""

    url: str
    md5: str
    num_files: int


ARCHIVES = {
    "speech": Archive(
        "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
        "bc696df654c87fed845eb13823edef8a",
        1440,  # 24 actors x 60
    ),
    "song": Archive(
        "https://zenodo.org/records/1188976/files/Audio_Song_Actors_01-24.zip",
        "5411230427d67a21e18aa4d466e6d1b9",
        1012,  # 23 actors x 44: actor 18 did not sing
    ),
}

# The five actor folds that most speaker-independent figures on RAVDESS use.
FOLDS = {
    1: (2, 5, 14, 15, 16),
    2: (3, 6, 7, 13, 18),
    3: (10, 11, 12, 19, 20),
    4: (8, 17, 21, 23, 24),
    5: (1, 4, 9, 22),
}


class RavdessError(ValueError):
    """What is wrong with the data, in one sentence."""


def parse_name(path: str | os.PathLike) -> dict:
    """
    The fields in a RAVDESS file name, `modality-vocal_channel-emotion-intensity-statement-repetition-actor`.

    Returns:
        `emotion`, `intensity`, `statement`, `gender` and `vocal_channel` as their words, `repetition` (1 or 2) and
        `actor` (1 to 24). Odd actors are male, even ones female.

    Raises:
        `RavdessError`: the name is not one of an audio-only RAVDESS recording.

    >>> parse_name("03-01-06-02-01-02-12.wav")["emotion"]
    'fearful'
    """
    path = Path(path)
    fields = path.stem.split("-")
    if len(fields) != 7 or not all(len(field) == 2 and field.isascii() and field.isdigit() for field in fields):
        raise RavdessError(
            f"{path} is not a RAVDESS name: expected seven two-digit numbers such as 03-01-06-01-02-01-12."
        )
    modality, channel, emotion, intensity, statement, repetition, actor = map(int, fields)
    ranges = {
        "modality": (modality, 3, 3),  # 03 is audio alone; 01 and 02 are videos
        "vocal channel": (channel, 1, 2),
        "emotion": (emotion, 1, 8),
        "intensity": (intensity, 1, 2),
        "statement": (statement, 1, 2),
        "repetition": (repetition, 1, 2),
        "actor": (actor, 1, 24),
    }
    for field, (value, low, high) in ranges.items():
        if not low <= value <= high:
            expected = f"{low:02d}" if low == high else f"{low:02d} to {high:02d}"
            raise RavdessError(
                f"{path} is not an audio-only RAVDESS name: {field} is {value:02d}, expected {expected}."
            )
    return {
        "emotion": EMOTIONS[emotion - 1],
        "intensity": INTENSITIES[intensity - 1],
        "statement": STATEMENTS[statement - 1],
        "repetition": repetition,
        "actor": actor,
        "gender": GENDERS[(actor - 1) % 2],
        "vocal_channel": VOCAL_CHANNELS[channel - 1],
    }


@dataclass
class RavdessConfig(datasets.BuilderConfig):
    """`fingerprint` makes a changed folder a new dataset in the cache; `load_ravdess` fills it in."""

    vocal_channels: tuple[str, ...] = ("speech",)
    allow_incomplete: bool = False
    fingerprint: str = ""


class Ravdess(datasets.ArrowBasedBuilder):
    """One row a recording; `audio` keeps the path, decoded when needed by `ser_model.audio`."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = RavdessConfig

    def _info(self):
        return datasets.DatasetInfo(
            description="Eight acted emotions, two sentences, spoken and sung by 24 North American actors.",
            citation=CITATION,
            license=LICENSE,
            homepage="https://zenodo.org/records/1188976",
            features=datasets.Features(
                {
                    # decode=False: decoding by `datasets` needs torchcodec and FFmpeg's system libraries.
                    "audio": datasets.Audio(decode=False),
                    "emotion": datasets.ClassLabel(names=list(EMOTIONS)),
                    "intensity": datasets.ClassLabel(names=list(INTENSITIES)),
                    "statement": datasets.ClassLabel(names=list(STATEMENTS)),
                    "repetition": datasets.Value("int8"),
                    "actor": datasets.Value("int8"),
                    "gender": datasets.ClassLabel(names=list(GENDERS)),
                    "vocal_channel": datasets.ClassLabel(names=list(VOCAL_CHANNELS)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        if self.config.data_dir is not None:
            folders = [self.config.data_dir]
        else:
            folders = [download(channel, dl_manager) for channel in self.config.vocal_channels]
        files = find_files(folders, self.config.vocal_channels, allow_incomplete=self.config.allow_incomplete)
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"files": files})]

    def _generate_tables(self, files):
        check_files(files)
        features = self.info.features
        rows = [{"audio": {"bytes": None, "path": str(file)}, **parse_name(file)} for file in files]
        columns = {
            name: [features[name].str2int(row[name]) if isinstance(features[name], datasets.ClassLabel) else row[name]
                   for row in rows]
            for name in features
        }  # fmt: skip
        # The arrow types are written out: left to itself, pyarrow infers a "null" type for the empty bytes.
        yield 0, pa.table(columns, schema=features.arrow_schema)


def load_ravdess(
    data_dir: str | os.PathLike | None = None,
    *,
    vocal_channels: tuple[str, ...] = ("speech",),
    allow_incomplete: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    RAVDESS as a dataset with the columns audio (path), emotion, intensity, statement, repetition, actor, gender and
    vocal_channel, in the order of the file names.

    Args:
        data_dir: A folder that holds RAVDESS's folders, as .wav or .flac. `None` downloads the archives from Zenodo,
            once, and checks them.
        vocal_channels: `("speech",)` (1440 recordings), `("song",)` (1012) or both.
        allow_incomplete: Accept fewer recordings than RAVDESS has.
        cache_dir: Where `datasets` keeps its tables and downloads; its own default if left out.

    Raises:
        `RavdessError`: the folder is missing or incomplete, names are wrong, recordings are damaged, or a download does
            not have the published checksum.
    """
    fingerprint = ""
    if data_dir is not None:
        data_dir = str(Path(data_dir).resolve())
        files = find_files([data_dir], vocal_channels, allow_incomplete=allow_incomplete)
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        fingerprint = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    builder = Ravdess(
        data_dir=data_dir,
        cache_dir=cache_dir,
        vocal_channels=tuple(vocal_channels),
        allow_incomplete=allow_incomplete,
        fingerprint=fingerprint,
    )
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, RavdessError):
            raise error.__cause__ from None
        raise
    return builder.as_dataset(split="train")


def download(channel: str, dl_manager: datasets.DownloadManager) -> str:
    """The folder of one unpacked archive, downloaded, with progress, if it is not in the cache."""
    archive = ARCHIVES[channel]
    return fetch(archive.url, dl_manager, title="RAVDESS", md5=archive.md5)


def fetch(url: str, dl_manager: datasets.DownloadManager, *, title: str, md5: str | None = None) -> str:
    """
    The folder of an unpacked archive, downloaded, with progress, if it is not in the cache.

    Args:
        title: Of the corpus that is in it.
        md5: What the archive must have, where the publisher tells it.

    Raises:
        `RavdessError`: it could not be downloaded, or has another checksum.
    """
    try:
        path = Path(dl_manager.download(url))
    except (OSError, aiohttp.ClientError) as error:  # the second when a connection breaks off halfway
        reason = str(error).partition("\n")[0]
        raise RavdessError(
            f"{title} could not be downloaded from {url} ({reason}): check the network, or give a folder that holds it "
            "with --data."
        ) from error
    # `datasets` checks no checksum itself, whatever its verification mode.
    if md5 is not None:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            path.unlink()
            raise RavdessError(
                f"The download of {url} is damaged: its MD5 is {found}, expected {md5}. It was deleted; run the command "
                "again."
            )
    return dl_manager.extract(str(path))


def find_files(folders, vocal_channels, *, allow_incomplete: bool = False) -> list[Path]:
    """The recordings of `vocal_channels` anywhere under `folders`, in the order of their names, complete and unique."""
    found = {channel: {} for channel in VOCAL_CHANNELS}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RavdessError(f"{folder} is not a folder: give the one that holds RAVDESS's Actor_01 to Actor_24.")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in (".wav", ".flac") and not path.name.startswith("."):
                found[parse_name(path)["vocal_channel"]].setdefault(path.stem, path)
    for channel in vocal_channels:
        expected, count = ARCHIVES[channel].num_files, len(found[channel])
        if count == 0 or (count < expected and not allow_incomplete):
            by_actor = Counter(int(stem[-2:]) for stem in found[channel])
            most = max(by_actor.values(), default=0)
            short = [actor for actor in ACTORS if by_actor[actor] < most]
            raise RavdessError(
                f"RAVDESS {channel} is incomplete in {', '.join(map(str, folders))}: found {count} recordings, expected "
                f"{expected}" + (f" (too few for actors {', '.join(map(str, short))})" if count and short else "")
                + ". Unpack the whole archive there."
            )  # fmt: skip
    return sorted(path for channel in vocal_channels for path in found[channel].values())


def check_files(files: list[Path]) -> None:
    """Decodes every recording once and names all that are damaged, so that they can be replaced in one go."""
    with ThreadPoolExecutor() as pool:
        damaged = [file for file, is_whole in zip(files, pool.map(_is_whole, files)) if not is_whole]
    if damaged:
        raise RavdessError(
            f"{len(damaged)} of {len(files)} recordings are damaged, replace them: {', '.join(map(str, damaged))}."
        )


def _is_whole(file: Path) -> bool:
    try:
        with soundfile.SoundFile(file) as sound:
            return sound.frames > 0 and len(sound.read(dtype="int16")) == sound.frames
    except (soundfile.LibsndfileError, OSError):
        return False


def split_actors(fold: int, *, num_validation: int = 4) -> dict[str, list[int]]:
    """
    Actors for `train`, `validation` and `test`: the test actors are those of fold 1 to 5; the validation actors, half
    of them male, are drawn from the others, always the same ones for the same fold.

    Raises:
        `ValueError`: no such fold, or an odd number of validation actors.
    """
    if fold not in FOLDS:
        raise ValueError(f"There is no fold {fold}: choose one of {', '.join(map(str, FOLDS))}.")
    if num_validation % 2:
        raise ValueError(f"num_validation is {num_validation}: it must be even, for as many women as men.")
    generator = np.random.default_rng(fold)
    others = [actor for actor in ACTORS if actor not in FOLDS[fold]]
    validation = []
    for remainder in (0, 1):
        candidates = [actor for actor in others if actor % 2 == remainder]
        validation += generator.permutation(candidates)[: num_validation // 2].tolist()
    train = [actor for actor in others if actor not in validation]
    return {"train": train, "validation": sorted(validation), "test": sorted(FOLDS[fold])}
