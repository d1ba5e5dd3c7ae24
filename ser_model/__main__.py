"""`python -m ser_model`: the emotions in recordings, from the shell."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from tqdm import tqdm

from .audio import describe
from .results import FORMATS, Journal, check_output, is_result, is_stream, output_file, write_results
from .scoring import describe_others, find_files, score_files

MAX_ERRORS_SHOWN = 10  # the others stand in the output
ENDINGS = {"": "text", ".txt": "text", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    paths, others = find_files(options.input)
    try:
        if options.output is not None:
            check_output(options.output, is_ours=is_result, inputs=paths)
        if others:
            print(describe_others(others), file=sys.stderr)
        if not paths:
            return explain(f"there is no recording in {', '.join(map(describe, options.input))}.")
        return _run(paths, options)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the checkpoint or the output; what is wrong with a recording stands in its result
        name = describe(error.filename or options.output)
        return explain(f"{name} cannot be opened or written: {error.strerror}." if error.strerror else error)
    except ValueError as error:
        return explain(error)
    except KeyboardInterrupt:
        goes_on = _journal_path(paths, options) is not None
        return explain("stopped; the same command goes on from here." if goes_on else "stopped.", status=130)


def _run(paths: list[str], options: argparse.Namespace) -> int:
    settings = {name: getattr(options, name) for name in ("model", "timeline", "any_sound")}
    journal = Journal(_journal_path(paths, options), settings)
    try:
        _score(paths, journal, options)
        write_results(
            journal.read(paths),
            options.output,
            kind=options.format,
            labels=journal.labels,
            timeline=options.timeline,
        )
        failed = [result["error"] for result in journal.read(paths) if "error" in result]
    finally:
        journal.close()
    journal.delete()
    for error in failed[:MAX_ERRORS_SHOWN]:
        explain(error)
    if failed and len(paths) > 1:
        print(f"{len(failed)} of {len(paths)} files could not be read.", file=sys.stderr)
    return 1 if failed else 0


def _journal_path(paths: list[str], options: argparse.Namespace) -> Path | None:
    """Where a run of several files that writes a file keeps what it has."""
    if options.output is None or is_stream(options.output) or len(paths) == 1:
        return None
    return Path(f"{options.output}.journal")


def _score(paths: list[str], journal: Journal, options: argparse.Namespace) -> None:
    """Adds to the journal what it does not hold yet."""
    left = journal.left(paths)
    one_file = len(paths) == 1
    bar = tqdm(
        total=None if one_file else len(paths),
        initial=0 if one_file else len(paths) - len(left),
        unit=" s" if one_file else "file",
        disable=None if one_file else False,  # None: only where there is somebody at a terminal to see it
        leave=bool(options.output) and not one_file,
    )
    with bar:
        answers = score_files(
            left,
            model=options.model,
            device=options.device,
            voice_only=not options.any_sound,
            workers=options.workers,
            on_window=(lambda heard_s: bar.update(heard_s - bar.n)) if one_file else None,
        )
        for result in answers:
            if not options.timeline:
                result.pop("windows", None)
            journal.add(result)
            if not one_file:
                bar.update()


def explain(message, *, status: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ser_model", description=__doc__)
    parser.add_argument("input", nargs="+", help="recordings, or folders of them, of any format and length")
    parser.add_argument(
        "--model",
        default="ser-base",
        help="name of a recipe that ships, a folder, or USER/NAME on the Hub (default: %(default)s)",
    )
    parser.add_argument("--format", choices=FORMATS, help="(default: as the output's name ends, else text)")
    parser.add_argument(
        "--output",
        type=output_file(*ENDINGS),
        help="write there instead of to the terminal; a run of several files that was stopped goes on",
    )
    parser.add_argument("--timeline", action="store_true", help="also the emotion of each few seconds")
    parser.add_argument("--any-sound", action="store_true", help="an answer for what is no voice, too")
    parser.add_argument("--workers", type=count, default=1, help="files scored side by side (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    options.format = options.format or ENDINGS.get(Path(options.output or "").suffix.lower(), "text")
    if options.format == "parquet" and options.output is None:
        parser.error("Parquet is not for the terminal: give --output as well.")
    if options.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        parser.error("Writing Parquet needs one more package: pip install pyarrow.")
    return options


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more.")
    return int(text)


if __name__ == "__main__":
    # transformers imports torchaudio wherever it is installed; listening has no use for it.
    sys.modules["torchaudio"] = None
    sys.exit(main())
