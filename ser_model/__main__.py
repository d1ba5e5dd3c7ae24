"""`python -m ser_model`: the emotions in recordings, from the shell."""

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from .scoring import find_recordings, score_files


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    paths = [path for given in options.input for path in find_recordings(given)]
    if not paths:
        print(f"error: there is no recording in {', '.join(options.input)}.", file=sys.stderr)
        return 1
    try:
        answers = score_files(paths, model=options.model, device=options.device, workers=options.workers)
        results = list(tqdm(answers, total=len(paths), unit="file", disable=len(paths) == 1, leave=False))
    except (OSError, ValueError) as error:  # the checkpoint; what is wrong with a recording stands in its result
        print(f"error: {error}", file=sys.stderr)
        return 1
    _write(_FORMATS[options.format](results, options.timeline), options.output)
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"error: {result['error']}", file=sys.stderr)
    if failed and len(results) > 1:
        print(f"{len(failed)} of {len(results)} files could not be read.", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ser_model", description=__doc__)
    parser.add_argument("input", nargs="+", help="recordings, or folders of them, of any format and length")
    parser.add_argument(
        "--model",
        default="ser-base",
        help="name of a recipe that ships, a folder, or USER/NAME on the Hub (default: %(default)s)",
    )
    parser.add_argument("--format", choices=_FORMATS, default="text", help="(default: %(default)s)")
    parser.add_argument("--output", help="write there instead of to the terminal")
    parser.add_argument("--timeline", action="store_true", help="also the emotion of each few seconds")
    parser.add_argument("--workers", type=int, default=1, help="files scored side by side (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    return parser.parse_args(arguments)


def _as_text(results: list[dict], timeline: bool) -> str:
    lines = []
    for result in results:
        if "error" in result:
            continue
        answer = f"Predicted Emotion: {result['label']} (Confidence: {result['score']:.2f})"
        lines.append(answer if len(results) == 1 else f"{result['path']}: {answer}")
        for window in result["windows"] if timeline else []:
            heard = "silence" if window["label"] is None else f"{window['label']} ({window['score']:.2f})"
            lines.append(f"  {window['start_s']:.1f} to {window['end_s']:.1f} s: {heard}")
    return "".join(f"{line}\n" for line in lines)


def _as_json(results: list[dict], timeline: bool) -> str:
    kept = [{name: value for name, value in result.items() if timeline or name != "windows"} for result in results]
    return json.dumps(kept, indent=1, ensure_ascii=False) + "\n"


def _as_csv(results: list[dict], timeline: bool) -> str:
    """One row a file, or with a timeline one a window; the last column says why a file could not be read."""
    labels = list(next((result["scores"] for result in results if "scores" in result), {}))
    columns = ["path", "start_s", "end_s", "label", "score", *labels, "error"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        whole = {**result, "start_s": 0.0 if "windows" in result else None, "end_s": result.get("duration_s")}
        for span in result.get("windows", [whole]) if timeline else [whole]:
            writer.writerow({"path": result["path"], **span, **(span.get("scores") or {})})
    return file.getvalue()


_FORMATS = {"text": _as_text, "json": _as_json, "csv": _as_csv}


def _write(text: str, output: str | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    partial = Path(f"{output}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, output)


if __name__ == "__main__":
    sys.exit(main())
