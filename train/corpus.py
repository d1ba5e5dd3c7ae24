"""
Corpora: `load_rows("nemo", folder)` gives a row a clip, with its path, emotion, speaker and corpus, and what else the corpus
tells. `CORPORA` holds what is published of each; a CSV file is a corpus, too. RAVDESS has a module of its own.
"""

import argparse
import csv
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from httpx2 import HTTPError  # what huggingface_hub raises when there is no connection
from huggingface_hub import snapshot_download

from ser_model.configuration_ser import EMOTIONS
from ser_model.pretrained import FOLDER as SHIPPED
from ser_model.scoring import find_recordings

from . import ravdess

# What CSV files call our emotions, beside our own names.
SYNONYMS = {
    "anger": "angry",
    "fear": "fearful",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprise": "surprised",
    "disgusted": "disgust",
    "calmness": "calm",
}
FEMALE, MALE = "female", "male"

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """What is wrong with recordings or their labels, in one sentence."""


@dataclass(frozen=True)
class Corpus:
    """
    title: As it is published.
    speakers: Who speaks, as the model card says it.
    language: ISO 639-1.
    source: Where to get it.
    num_clips: How many recordings it has, those of emotions that are left out among them.
    emotions: Its names for emotions (in lower case) -> ours; `None` leaves them out.
    pattern: Of a file's name without its ending, in any case, with the groups `emotion`, `speaker` and what else it tells.
    words: For a group of the pattern, what its codes (in lower case) mean.
    genders: By speaker, where the name does not tell.
    damaged: Names of published recordings with nothing in them.
    download: Gets the corpus and returns the folder that holds it; `None` where the publisher offers no direct download.
    may_ship: Whether weights that learnt from it may leave this machine.
    """

    title: str
    speakers: str
    language: str
    license: str
    citation: str
    source: str
    num_clips: int
    emotions: dict[str, str | None]
    pattern: str = ""
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    genders: dict[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    download: Callable[[], str] | None = None
    may_ship: bool = True

    def parse(self, path: str | os.PathLike) -> dict | None:
        """What a file's name tells: `emotion` (`None` if it is left out), `speaker` and more; `None` for other names."""
        found = re.fullmatch(self.pattern, Path(path).stem, re.IGNORECASE)
        if found is None or found["emotion"].lower() not in self.emotions:
            return None
        fields = {name: self.words.get(name, {}).get(code.lower(), code) for name, code in found.groupdict().items()}
        fields |= {"emotion": self.emotions[found["emotion"].lower()], "speaker": fields["speaker"].upper()}
        if gender := self.genders.get(fields["speaker"]):
            fields["gender"] = gender
        return fields

    def read(self, folder: str | os.PathLike | None, *, allow_incomplete: bool = False, **_) -> list[dict]:
        """A row a recording anywhere under `folder`, in the order of their names; see `load_rows`."""
        if folder is None:
            if self.download is None:
                raise DataError(f"{self.title} has no direct download: get it from {self.source}, and give its folder.")
            folder = self.download()
        if not os.path.isdir(folder):
            raise DataError(f"{folder} is not a folder: give the one that holds {self.title}, from {self.source}.")
        found, order = {}, (".wav", ".flac")  # of a clip in several formats the lossless one
        for path in sorted(find_recordings(str(folder)), key=lambda p: (Path(p).suffix.lower() not in order, p)):
            if (fields := self.parse(path)) is not None:
                found.setdefault(Path(path).stem.lower(), {"path": path, **fields})
        if not found or (len(found) < self.num_clips and not allow_incomplete):
            raise DataError(
                f"{self.title} is incomplete in {folder}: found {len(found)} recordings with its names, expected "
                f"{self.num_clips}. Get all of it from {self.source}."
            )
        damaged = {name.lower() for name in self.damaged}
        return [row for name, row in sorted(found.items()) if row["emotion"] and name not in damaged]


class Ravdess(Corpus):
    """RAVDESS, whose names, archives and checks stand in `train.ravdess`."""

    def parse(self, path: str | os.PathLike) -> dict | None:
        try:
            fields = ravdess.parse_name(path)
        except ravdess.RavdessError:
            return None
        return {**fields, "speaker": f"{fields['actor']:02d}"}

    def read(self, folder=None, *, allow_incomplete: bool = False, vocal_channels=("speech",)) -> list[dict]:
        data = ravdess.load_ravdess(folder, vocal_channels=vocal_channels, allow_incomplete=allow_incomplete)
        return [{"path": audio["path"], **self.parse(audio["path"])} for audio in data["audio"]]


def _download_nemo() -> str:
    # The Hub checks what it sends; that it is all of it is checked by the names.
    try:
        return snapshot_download("amu-cai/nEMO", repo_type="dataset")
    except (HTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"nEMO could not be downloaded from {CORPORA['nemo'].source} ({reason}): check the network, or give a folder "
            "that holds it with --data nemo=FOLDER."
        ) from error


def _download_emodb() -> str:
    # The publisher tells no checksum: that it is whole is checked by the names.
    return ravdess.fetch(CORPORA["emodb"].source, datasets.DownloadManager(), title="EmoDB")


CORPORA: dict[str, Corpus] = {
    "ravdess": Ravdess(
        title="RAVDESS",
        speakers="24 North American actors who say two sentences",
        language="en",
        license=ravdess.LICENSE,
        citation=ravdess.CITATION,
        source="https://zenodo.org/records/1188976",
        num_clips=sum(archive.num_files for archive in ravdess.ARCHIVES.values()),
        emotions={emotion: emotion for emotion in EMOTIONS},
    ),
    "nemo": Corpus(
        title="nEMO",
        speakers="nine Polish actors",
        language="pl",
        license="CC BY-NC-SA 4.0",
        citation="Christop I (2024). nEMO: Dataset of Emotional Speech in Polish. LREC-COLING 2024. https://arxiv.org/abs/2404.06292",
        source="https://huggingface.co/datasets/amu-cai/nEMO",
        num_clips=4481,
        emotions={
            "anger": "angry",
            "fear": "fearful",
            "happiness": "happy",
            "neutral": "neutral",
            "sadness": "sad",
            "surprised": "surprised",
        },
        pattern=r"(?P<speaker>[A-Z]{2}\d)_(?P<emotion>[a-z]+)_\d+",
        genders=dict.fromkeys(("EB0", "IC0", "KD0", "MK0"), FEMALE)
        | dict.fromkeys(("KS0", "MP0", "SM0", "TP0", "WR0"), MALE),
        download=_download_nemo,
    ),
    "ased": Corpus(
        title="ASED",
        speakers="65 speakers of Amharic",
        language="am",
        license="not stated",
        citation="Retta EA, Almekhlafi E, Sutcliffe R, Mhamed M, Ali H, Feng J (2022). A New Amharic Speech Emotion Dataset and "
        "Classification Benchmark. https://doi.org/10.1145/3529759",
        source="https://github.com/Ethio2021/ASED_V1",
        num_clips=2474,
        emotions={"n": "neutral", "f": "fearful", "h": "happy", "s": "sad", "a": "angry"},
        pattern=r"(?P<emotion>[a-z])\d-\d\d-\d\d-(?P<gender>0[12])-(?P<speaker>\d\d)",
        words={"gender": {"01": FEMALE, "02": MALE}},
        may_ship=False,
    ),
    "crema-d": Corpus(
        title="CREMA-D",
        speakers="91 North American actors who say twelve sentences",
        language="en",
        license="ODbL 1.0",
        citation="Cao H, Cooper DG, Keutmann MK, Gur RC, Nenkova A, Verma R (2014). CREMA-D: Crowd-Sourced Emotional Multimodal "
        "Actors Dataset. IEEE Transactions on Affective Computing 5(4): 377-390. https://doi.org/10.1109/TAFFC.2014.2336244",
        source="https://github.com/CheyneyComputerScience/CREMA-D (its folder AudioWAV)",
        num_clips=7442,
        emotions={"ang": "angry", "dis": "disgust", "fea": "fearful", "hap": "happy", "neu": "neutral", "sad": "sad"},
        pattern=r"(?P<speaker>1\d{3})_[A-Z]{3}_(?P<emotion>[A-Z]{3})_(?P<intensity>LO|MD|HI|XX?)",
        words={
            "intensity": {"lo": "low", "md": "medium", "hi": "high", "xx": "unspecified", "x": "unspecified"},
        },
        damaged=("1076_MTI_SAD_XX",),
    ),
    "tess": Corpus(
        title="TESS",
        speakers="two Canadian actresses who say 200 words",
        language="en",
        license="CC BY-NC-ND 4.0",
        citation="Pichora-Fuller MK, Dupuis K (2020). Toronto emotional speech set (TESS). https://doi.org/10.5683/SP2/E8H2MF",
        source="https://doi.org/10.5683/SP2/E8H2MF",
        num_clips=2800,
        emotions={
            "angry": "angry",
            "disgust": "disgust",
            "fear": "fearful",
            "happy": "happy",
            "neutral": "neutral",
            "ps": "surprised",  # pleasant surprise
            "sad": "sad",
        },
        pattern=r"(?P<speaker>OAF?|YAF)_[^_]+_(?P<emotion>[a-z]+)",
        words={"speaker": {"oa": "OAF"}},  # one name lacks the F
        genders={"OAF": FEMALE, "YAF": FEMALE},
        may_ship=False,  # ND: nothing that is made of it may be passed on
    ),
    "emodb": Corpus(
        title="EmoDB",
        speakers="ten German actors who say ten sentences",
        language="de",
        license="free to download, none stated",
        citation="Burkhardt F, Paeschke A, Rolfes M, Sendlmeier WF, Weiss B (2005). A database of German emotional speech. "
        "Interspeech 2005. https://doi.org/10.21437/Interspeech.2005-446",
        source="http://emodb.bilderbar.info/download/download.zip",
        num_clips=535,
        emotions={
            "w": "angry",  # Wut
            "l": None,  # Langeweile, boredom
            "e": "disgust",  # Ekel
            "a": "fearful",  # Angst
            "f": "happy",  # Freude
            "t": "sad",  # Trauer
            "n": "neutral",
        },
        pattern=r"(?P<speaker>\d\d)[a-z]\d\d(?P<emotion>[a-z])[a-z]",
        genders=dict.fromkeys(("08", "09", "13", "14", "16"), FEMALE)
        | dict.fromkeys(("03", "10", "11", "12", "15"), MALE),
        download=_download_emodb,
        may_ship=False,
    ),
}


def load_rows(
    name: str,
    folder: str | os.PathLike | None = None,
    *,
    vocal_channels: tuple[str, ...] = ("speech",),
    allow_incomplete: bool = False,
) -> list[dict]:
    """
    A row a clip of one corpus, in the order of their names: `path`, `emotion` (one of ours; a CSV file's own word where we
    have none), `speaker` (`None` if it is not told), `corpus`, and what else the corpus tells, such as `gender`.

    Args:
        name: One of `CORPORA`, or a CSV file with the columns `path` and `label`, perhaps `speaker` and others.
        folder: Where the corpus is; `None` downloads it where its publisher lets us. Not for a CSV file.
        vocal_channels: Of RAVDESS.
        allow_incomplete: Accept fewer recordings than the corpus has.

    Raises:
        `DataError`, `ravdess.RavdessError`: there is no such corpus, it is incomplete or cannot be had, or the file is wrong.
    """
    if name not in CORPORA:
        return _csv_rows(Path(name))
    rows = CORPORA[name].read(folder, allow_incomplete=allow_incomplete, vocal_channels=vocal_channels)
    return [{**row, "corpus": name} for row in rows]


def check_name(name: str) -> None:
    """Raises `DataError` for a name that is neither of a corpus nor of a CSV file."""
    if name not in CORPORA and Path(name).suffix.lower() != ".csv":
        raise DataError(
            f"There is no corpus {name!r}: give one of {', '.join(CORPORA)}, or a CSV file of path and label."
        )


def _csv_rows(file: Path) -> list[dict]:
    check_name(str(file))
    return own_rows(read_csv(file), corpus=file.stem)


def own_rows(clips: list[dict], *, corpus: str) -> list[dict]:
    """
    The rows of somebody's own `clips`, {path, label, …}. Those that are named as in one of `CORPORA` are of that corpus,
    whatever a table says, so that what they are and what may be done with them is not forgotten.
    """
    rows = []
    for clip in clips:
        label = clip["label"].lower()
        row = {"speaker": None, "corpus": corpus, **clip, "emotion": SYNONYMS.get(label, label)}
        rows.append({**row, **(_origin(clip["path"]) or {})})
    return rows


def _origin(path: str) -> dict | None:
    """`corpus` and `speaker` of a clip that is named as in one of `CORPORA`."""
    for name, corpus in CORPORA.items():
        if fields := corpus.parse(path):
            return {"corpus": name, "speaker": fields["speaker"]}
    return None


def read_csv(file: Path) -> list[dict]:
    """
    A row a recording: `path`, found from the file's own folder, `label`, and its other columns as they are.

    Raises:
        `DataError`: there is no such file, a column is missing or empty, or a recording does not exist.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a CSV file of path and label.")
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is neither a folder nor a CSV file of path and label: {error}.") from error
    if missing := {"path", "label"} - set(columns):
        raise DataError(
            f"{file} has no column {' or '.join(sorted(missing))}: its first line must name path and label."
        )
    wanted = [name for name in ("path", "label", "speaker") if name in columns]
    clips = []
    for number, row in enumerate(rows, 2):
        if empty := [name for name in wanted if not (row[name] or "").strip()]:
            raise DataError(f"{file}, row {number}: {' and '.join(empty)} is empty.")
        clip = {name: (row[name] or "").strip() for name in columns}
        clip["path"] = str(file.parent / clip["path"])
        if not Path(clip["path"]).is_file():
            raise DataError(f"{file}, row {number}: {clip['path']} does not exist.")
        clips.append(clip)
    return clips


def load_training_rows(
    names: Iterable[str], folders: "str | os.PathLike | dict[str, str] | None" = None, **options
) -> list[dict]:
    """
    The rows of several corpora one after the other, of emotions that we have; how many others there are is logged.

    Args:
        folders: The folder of RAVDESS, or of each corpus by its name; what is not named is downloaded.
        options: As of `load_rows`.
    """
    folders = folders if isinstance(folders, dict) else {"ravdess": folders}
    rows = []
    for name in dict.fromkeys(names):
        every = load_rows(name, folders.get(name), **options)
        known = [row for row in every if row["emotion"] in EMOTIONS]
        if others := Counter(row["emotion"] for row in every if row["emotion"] not in EMOTIONS):
            told = ", ".join(f"{emotion} ({count})" for emotion, count in sorted(others.items()))
            if not known:
                raise DataError(f"{name} has none of our emotions but {told}: label its clips {', '.join(EMOTIONS)}.")
            logger.warning("%s: left out, as none of our emotions: %s.", name, told)
        rows += known
    return rows


def told(row: dict) -> dict:
    """A row as run and result files tell it: by the clip's name, with its emotion as `label`, without its path."""
    about = {name: value for name, value in row.items() if name not in ("path", "emotion", "label")}
    return {"clip": Path(row["path"]).stem, "label": row["emotion"], **about}


def told_clips(run: dict) -> list[dict]:
    """The clips of a `run.json` as `told` writes them; the first runs named RAVDESS's by their files alone."""
    named = CORPORA["ravdess"].parse
    return [
        clip if isinstance(clip, dict) else {**told({"path": clip, **named(clip)}), "corpus": "ravdess"}
        for clip in run["clips"]
    ]


def fingerprints(rows: list[dict]) -> dict[str, str]:
    """By corpus, SHA-256 over the names and the content of its clips (and the labels of a CSV file), wherever they lie."""
    digests = {}
    for row in rows:
        digest = digests.setdefault(row["corpus"], hashlib.sha256())
        path = Path(row["path"])
        digest.update(path.name.encode() + row.get("label", "").encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def join_fingerprints(by_corpus: dict[str, str]) -> str:
    """One for several corpora; that of a single one as it is."""
    if len(by_corpus) == 1:
        return next(iter(by_corpus.values()))
    return hashlib.sha256(repr(sorted(by_corpus.items())).encode()).hexdigest()


def learnt_from(rows: list[dict]) -> dict[str, dict]:
    """What `run.json` says as `corpora` of the clips that a network has learnt from."""
    corpora = {}
    for row in rows:
        about = corpora.setdefault(row["corpus"], {"num_clips": 0, "speakers": set()})
        about["num_clips"] += 1
        about["speakers"].add(row["speaker"] or "")
    return {name: {**about, "speakers": sorted(about["speakers"])} for name, about in corpora.items()}


def learnt_corpora(run: dict) -> dict[str, dict]:
    """`corpora` of a `run.json`; before they were written there, RAVDESS was the only one."""
    return run.get("corpora", {"ravdess": {}})


def check_may_ship(corpora: Iterable[str]) -> None:
    """
    Raises:
        `DataError`: weights that learnt from one of these corpora must not leave this machine.
    """
    kept = [CORPORA[name] for name in corpora if name in CORPORA and not CORPORA[name].may_ship]
    if kept:
        told = " and ".join(f"{corpus.title} (licence: {corpus.license})" for corpus in kept)
        raise DataError(f"Weights that learnt from {told} are not passed on: train on corpora that allow it.")


def is_shipped(output: Path) -> bool:
    """Whether a folder is among the checkpoints that ship."""
    return output.resolve().is_relative_to(SHIPPED.resolve())


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data`, which `data_folders` reads."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="[CORPUS=]FOLDER",
        help="folder that holds RAVDESS, or, as in nemo=FOLDER, another corpus; may be given several times; what is left out "
        "is downloaded and cached, where its publisher lets us",
    )


def data_folders(given: list[str] | None) -> dict[str, str]:
    """
    `--data` as corpus -> folder; a folder alone is RAVDESS's.

    Raises:
        `DataError`: no such corpus, or two folders of one.
    """
    folders = {}
    for text in given or []:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).exists():
            name, folder = "ravdess", text
        if name not in CORPORA:
            raise DataError(f"--data {text}: {name} is no corpus, give one of {', '.join(CORPORA)} before the folder.")
        if name in folders:
            raise DataError(f"--data names two folders for {name}: {folders[name]} and {folder}; give one.")
        folders[name] = folder
    return folders
