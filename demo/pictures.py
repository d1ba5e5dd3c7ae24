"""Pictures as HTML and SVG, which follow the page's width and its light or dark colours. Numbers in, markup out."""

import base64
import functools
import io
import json
from html import escape

import matplotlib
import numpy as np
import PIL.Image

from ser_model import SerFeatureExtractor
from ser_model.results import write_table

from .hearing import UNSURE_BELOW, Hearing, is_unsure

# Each emotion keeps one glyph and one colour throughout. Other labels, of other people's checkpoints, share the last.
EMOTIONS = {
    "neutral": ("😐", "#8b919c"),
    "calm": ("😌", "#2f9e8f"),
    "happy": ("😊", "#d9a400"),
    "sad": ("😢", "#4a7fd0"),
    "angry": ("😠", "#d64545"),
    "fearful": ("😨", "#9461c9"),
    "disgust": ("🤢", "#6f9632"),
    "surprised": ("😲", "#e67a2e"),
}
OTHER = ("🗣️", "#6366f1")
NUM_COLUMNS = 600  # of a picture, whatever the recording's length
TICK_STEPS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)


def glyph(label: str) -> str:
    return EMOTIONS.get(label, OTHER)[0]


def color(label: str) -> str:
    return EMOTIONS.get(label, OTHER)[1]


def name(label: str | None) -> str:
    """An emotion as the page writes it everywhere."""
    if label is None:
        return '<span class="name">– no speech</span>'
    return f'<span class="name"><span class="glyph" aria-hidden="true">{glyph(label)}</span> {escape(label)}</span>'


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def headline(answer: dict | None, *, no_answer: str = "", waiting: str = "") -> str:
    """The answer in words; what to do while there is none, or that there is nothing to hear."""
    if no_answer:
        return _headline("🔇", "No speech heard", escape(no_answer))
    if answer is None:
        return _headline("🎙️", "Nothing heard yet", escape(waiting))
    label, confidence = answer["label"], percent(answer["score"])
    if is_unsure(answer):
        threshold = percent(UNSURE_BELOW)
        return _headline(
            "❔", "Unsure", f"Best guess: {name(label)}, {confidence} (below {threshold} it is only a guess)"
        )
    return _headline(glyph(label), escape(label.capitalize()), f"Confidence {confidence}", color(label))


def _headline(sign: str, words: str, below: str, edge: str = "var(--border-color-primary)") -> str:
    return (
        f'<div class="headline" role="status" style="border-color:{edge}"><span class="sign glyph" aria-hidden="true">{sign}'
        f'</span><div><strong>{words}</strong><span class="quiet">{below}</span></div></div>'
    )


def bars(labels: list[str], scores: dict[str, float] | None) -> str:
    """Every probability, always in the model's order, so that an emotion never changes its place."""
    rows = "".join(
        f'<tr><th scope="row">{name(label)}</th><td class="track"><div style="width:{100 * scores[label] if scores else 0:.1f}%;'
        f'background:{color(label)}"></div></td><td class="number">{percent(scores and scores[label])}</td></tr>'
        for label in labels
    )
    return f'<table class="bars" aria-label="Probability of each emotion">{rows}</table>'


def recording(hearing: Hearing | None, labels: list[str]) -> str:
    """Waveform, log-mel, attention, and emotions over time if there is more than one window; on one time axis."""
    if hearing is None:
        return '<div class="picture empty"><p>Here you will see the recording, and where in it the network listened.</p></div>'
    attention = _attention(hearing.attention)
    rows = [
        _row("waveform", "wave", _waveform(hearing.waveform) + attention),
        _row("log-mel<small>to 8 kHz</small>", "mel", _log_mel(hearing.waveform, hearing.rate) + attention),
    ]
    windows = hearing.answer["windows"] if hearing.answer else []
    if len(windows) > 1:
        rows += over_time_rows(windows, labels, hearing.duration_s)
    caption = hearing.no_answer
    if hearing.answer and hearing.attention is None:
        caption = "This network has no attention over time."
    elif hearing.answer:
        caption = (
            "The line is the network's attention: it is high where it listened most, at its peak "
            f"{hearing.attention.max():.1f} times more than evenly. Click to play from there."
        )
    return _figure(rows, 0.0, hearing.duration_s, caption, "seekable")


def over_time(windows: list[dict], labels: list[str]) -> str:
    """The emotions of consecutive windows as a picture of its own."""
    if not windows:
        return '<div class="picture empty"><p>Here you will see how the answer changes.</p></div>'
    start, end = windows[0]["start_s"], windows[-1]["end_s"]
    rows = over_time_rows(windows, labels, end - start, start)
    return _figure(rows, start, end, "The fuller a cell, the more probable the emotion.")


def over_time_rows(windows: list[dict], labels: list[str], duration_s: float, start_s: float = 0.0) -> list[str]:
    """A row an emotion: in each window, a bar as high as its probability."""
    rows = []
    for label in labels:
        bars = "".join(
            f'<rect x="{1000 * (w["start_s"] - start_s) / duration_s:.1f}" y="{1 - w["scores"][label]:.2f}" '
            f'width="{1000 * (w["end_s"] - w["start_s"]) / duration_s:.1f}" height="{w["scores"][label]:.2f}"/>'
            for w in windows
            if w["scores"] and w["scores"][label] >= 0.01
        )
        plot = f'<svg viewBox="0 0 1000 1" preserveAspectRatio="none" fill="{color(label)}">{bars}</svg>'
        rows.append(_row(name(label), "emotion", plot))
    return rows


def _figure(rows: list[str], start_s: float, end_s: float, caption: str, kind: str = "") -> str:
    return (
        f'<figure class="picture {kind}" data-duration="{end_s - start_s:.3f}" data-end="{end_s:.3f}"><div class="rows">{"".join(rows)}'
        f'<div class="ticks">{_ticks(start_s, end_s)}</div><div class="playhead"></div></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _row(label: str, kind: str, plot: str) -> str:
    return f'<div class="label">{label}</div><div class="plot {kind}" aria-hidden="true">{plot}</div>'


def _ticks(start_s: float, end_s: float) -> str:
    duration_s = end_s - start_s
    step = next((step for step in TICK_STEPS_S if duration_s / step <= 6), TICK_STEPS_S[-1])
    times = np.arange(np.ceil(start_s / step) * step, end_s - 0.04 * duration_s, step)
    return "".join(
        f'<span style="left:{100 * (time - start_s) / duration_s:.2f}%">{clock(time) if end_s > 60 else f"{time:g} s"}</span>'
        for time in times
    )


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _waveform(waveform: np.ndarray) -> str:
    loudness = _columns(np.abs(waveform), np.max)
    loudness = loudness / max(loudness.max(), 1e-9)
    upper = " ".join(f"{x},{1 - y:.3f}" for x, y in enumerate(loudness))
    lower = " ".join(f"{x},{1 + y:.3f}" for x, y in reversed(list(enumerate(loudness))))
    return f'{_svg(len(loudness), 2)}<polygon class="sound" points="{upper} {lower}"/></svg>'


def _attention(attention: np.ndarray | None) -> str:
    if attention is None or not attention.any():
        return ""
    curve = _columns(attention, np.max)
    points = " ".join(f"{x},{1 - 0.95 * y:.3f}" for x, y in enumerate(curve / curve.max()))
    end = len(curve) - 1
    return (
        f'{_svg(len(curve), 1, "attention")}<polygon points="0,1 {points} {end},1"/>'
        f'<polyline class="halo" points="{points}"/><polyline points="{points}"/></svg>'
    )


def _svg(width: int, height: int, kind: str = "") -> str:
    return f'<svg class="{kind}" viewBox="0 0 {max(width - 1, 1)} {height}" preserveAspectRatio="none">'


def _columns(values: np.ndarray, reduce) -> np.ndarray:
    """(num_values,) -> at most `NUM_COLUMNS` values, each of a piece of about equal length."""
    return np.array([reduce(piece) for piece in np.array_split(values, min(NUM_COLUMNS, len(values)))])


def _log_mel(waveform: np.ndarray, rate: int) -> str:
    extractor = _picture_extractor(rate, max(rate // 100, len(waveform) // NUM_COLUMNS))
    decibels = extractor(waveform, sampling_rate=rate)["input_features"][0]  # (num_frames, num_mel_bins)
    shades = np.round(255 * (1 + decibels / extractor.top_db)).astype(np.uint8)
    image = PIL.Image.fromarray(np.ascontiguousarray(shades.T[::-1]), "L")
    image.putpalette((255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return f'<img alt="" src="{_data_url(file.getvalue(), "image/png")}">'


@functools.lru_cache(maxsize=64)
def _picture_extractor(rate: int, hop_length: int) -> SerFeatureExtractor:
    return SerFeatureExtractor(sampling_rate=rate, hop_length=hop_length, trim_db=None, normalize=None)


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def windows_table(windows: list[dict]) -> str:
    """The windows one below the other, and the same with every probability to download."""
    if not windows:
        return ""
    rows = "".join(
        f"<tr><td>{clock(w['start_s'])}</td><td>{clock(w['end_s'])}</td><td>{name(w['label'])}</td>"
        f'<td class="number">{percent(w["score"])}</td></tr>'
        for w in windows
    )
    records = [{**{k: v for k, v in w.items() if k != "scores"}, **(w["scores"] or {})} for w in windows]
    return (
        f"{downloads('emotions', as_csv(records), windows)}"
        '<div class="scroll" tabindex="0" role="region" aria-label="Emotion of each window"><table class="grid"><thead>'
        '<tr><th scope="col">from</th><th scope="col">to</th><th scope="col">emotion</th>'
        f'<th scope="col" class="number">confidence</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def as_csv(records: list[dict]) -> str:
    """One row a record; the columns are all the names that occur, and `None` is an empty cell."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    file = io.StringIO()
    write_table(file, columns, records)
    return file.getvalue()


def downloads(filename: str, csv_text: str, data: list[dict] | dict | None = None) -> str:
    """Links that carry their file in themselves: nothing is written on the server."""
    files = {f"{filename}.csv": ("text/csv", csv_text)}
    if data is not None:
        files[f"{filename}.json"] = ("application/json", json.dumps(data, indent=1, ensure_ascii=False))
    links = "".join(
        f'<a class="download" download="{file}" href="{_data_url(text.encode(), kind)}">⬇ {file.split(".")[1].upper()}</a>'
        for file, (kind, text) in files.items()
    )
    return f'<p class="downloads">Download: {links}</p>'
