"""`python -m train.evaluate`: a recipe's figures under a protocol, on people, clips or a corpus it has never heard."""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import shlex
import sys
from pathlib import Path

import tqdm

from ser_model.audio import AudioError
from ser_model.pretrained import available

from . import corpus as corpora
from . import other_corpus
from . import recipe as recipes
from .conditions import CONDITIONS, mean_over_runs, score_conditions
from .ravdess import FOLDS
from .report import print_result, result_path, summarise, write_result
from .train import PROTOCOLS, explain, train, use_one_thread
from .trainer import RunError


def evaluate(
    recipe: recipes.Recipe,
    *,
    protocol: str,
    folds: list[int],
    runs_dir: Path,
    data_dir: str | dict[str, str] | None = None,
    seeds: list[int],
    held_out: str = "test",
    allow_incomplete: bool = False,
    jobs: int = 1,
    conditions: list[str] | None = None,
) -> dict:
    """
    Trains (or reads, where it is finished) one network a fold and seed and scores it on the clips held out.

    Args:
        folds: Of speaker-independent; the others have the one fold 1.
        runs_dir: Keeps each fold's run, so that an evaluation that was stopped goes on.
        held_out: `"test"`, or `"validation"` for choosing between recipes.
        jobs: Folds trained and scored side by side, one thread each.
        conditions: Names of `CONDITIONS` under which the held-out clips are scored once more.

    Returns:
        The result as it is written to JSON (see `report.summarise`).
    """
    folders = [
        (seed, fold, runs_dir / f"{recipe.name}.{protocol}.{held_out}.seed-{seed}" / f"fold-{fold}")
        for seed in seeds
        for fold in folds
    ]
    tasks = [
        functools.partial(
            train,
            recipe,
            folder,
            data_dir=data_dir,
            protocol=protocol,
            fold=fold if protocol == "speaker-independent" else None,
            seed=seed,
            held_out=held_out,
            allow_incomplete=allow_incomplete,
            quiet=jobs > 1,
        )
        for seed, fold, folder in folders
    ]
    runs = _run_all(tasks, jobs)
    result = summarise(runs, recipe, protocol=protocol, held_out=held_out)
    if conditions:
        rows = corpora.load_training_rows(
            ["ravdess"], data_dir, vocal_channels=recipe.vocal_channels, allow_incomplete=allow_incomplete
        )
        paths = {Path(row["path"]).stem: row["path"] for row in rows}
        tasks = [
            functools.partial(score_conditions, folder, run, paths, conditions, quiet=jobs > 1)
            for (_, _, folder), run in zip(folders, runs)
        ]
        result["conditions"] = mean_over_runs(_run_all(tasks, jobs))
    return result


def _run_all(tasks: list, jobs: int) -> list[dict]:
    if jobs == 1:
        return [task() for task in tasks]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn, initializer=use_one_thread) as pool:
        # The first fold's process fills the feature cache that the others then read.
        futures = [pool.submit(task) for task in tasks]
        for future in tqdm.tqdm(concurrent.futures.as_completed(futures), total=len(futures), unit="fold"):
            future.result()  # a fold that fails is told at once
    return [future.result() for future in futures]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__)
    parser.add_argument("--recipe", default="ser-base", help="name of a recipe, or a YAML file (default: %(default)s)")
    parser.add_argument(
        "--protocol",
        required=True,
        choices=[*PROTOCOLS[1:], other_corpus.PROTOCOL],
        help="leaky-split shows what mistakes are worth: variants of a clip on both sides, the epoch chosen by test clips; "
        "other-corpus trains nothing, but has a finished network hear --corpus",
    )
    parser.add_argument(
        "--corpus", help=f"for other-corpus: {', '.join(corpora.CORPORA)}, or a CSV file of path and label"
    )
    parser.add_argument(
        "--checkpoint", help="for other-corpus: folder, or USER/NAME on the Hub (default: the recipe's that ships)"
    )
    parser.add_argument(
        "--half",
        choices=("a", "b"),
        help="for other-corpus: every second speaker, from the first or from the second; choices are made on one half, the "
        "other is read once; the result is then not written to train/results",
    )
    parser.add_argument("--folds", help="only these, as in 1,2; the result is then not written to train/results")
    parser.add_argument(
        "--held-out",
        choices=("test", "validation"),
        default="test",
        help="validation chooses between recipes; test is read once (default: %(default)s)",
    )
    parser.add_argument(
        "--condition",
        choices=[*CONDITIONS, "all"],
        action="append",
        help="also score the clips as they sound outside the studio; may be given several times",
    )
    corpora.add_data_option(parser)
    parser.add_argument("--output", help="result file (default: train/results/RECIPE.PROTOCOL.json)")
    parser.add_argument("--runs", default="runs", help="folder for the folds' networks (default: %(default)s)")
    parser.add_argument("--seed", default="0", help="or several, as in 0,1,2, and the mean over them")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="folds side by side (default: %(default)s, the cores)"
    )
    parser.add_argument("--allow-incomplete", action="store_true", help="accept fewer recordings than a corpus has")
    options = parser.parse_args(arguments)
    if (options.protocol == other_corpus.PROTOCOL) != (options.corpus is not None):
        parser.error("--corpus goes with --protocol other-corpus, and that protocol needs it.")
    if options.corpus is None and (options.checkpoint or options.half):
        parser.error("--checkpoint and --half go with --protocol other-corpus.")
    if options.corpus and (options.folds or options.condition or options.held_out != "test"):
        parser.error("--folds, --condition and --held-out are not for --protocol other-corpus.")
    use_one_thread()
    try:
        if options.corpus:
            return _score_other_corpus(options)
        if options.condition and options.protocol == "leaky-split":
            raise ValueError("--condition is not for leaky-split, whose test clips are variants of each other already.")
        recipe = recipes.load_recipe(options.recipe)
        folds = _parse_folds(options.folds, options.protocol)
        seeds = _parse_numbers(options.seed, "--seed", "whole numbers")
        result = evaluate(
            recipe,
            protocol=options.protocol,
            folds=folds,
            runs_dir=Path(options.runs),
            data_dir=corpora.data_folders(options.data),
            seeds=seeds,
            held_out=options.held_out,
            allow_incomplete=options.allow_incomplete,
            jobs=min(max(options.jobs, 1), len(folds) * len(seeds)),
            conditions=list(CONDITIONS) if "all" in (options.condition or []) else options.condition,
        )
    except (AudioError, RunError, ValueError, OSError) as error:
        return explain(error)
    result["command"] = _command(options)
    print_result(result)
    is_whole = options.folds is None and options.held_out == "test"
    _write(result, options.output or (result_path(recipe.name, options.protocol) if is_whole else None))
    return 0


def _score_other_corpus(options: argparse.Namespace) -> int:
    """Only what concerns a recipe's whole network and a whole corpus that it does not know becomes a committed result."""
    if options.checkpoint is None and options.recipe not in available():
        raise ValueError(f"No checkpoint of {options.recipe} ships: give --checkpoint, the folder of a finished one.")
    checkpoint = options.checkpoint or options.recipe
    result = other_corpus.evaluate(
        checkpoint,
        options.corpus,
        folder=corpora.data_folders(options.data).get(options.corpus),
        half=options.half,
        allow_incomplete=options.allow_incomplete,
        jobs=max(options.jobs, 1),
    )
    is_whole = result.pop("is_whole")
    result["command"] = _command(options)
    other_corpus.print_result(result)
    default = result_path(result["recipe"], options.protocol, result["corpus"]) if is_whole else None
    _write(result, options.output or default)
    return 0


def _write(result: dict, path: str | Path | None) -> None:
    if path is not None:
        write_result(result, path := Path(path))
        print(f"\nWritten: {path} and {path.with_suffix('.png').name}")


def _command(options: argparse.Namespace) -> str:
    """What rewrites the result, wherever the data and the runs may lie."""
    told = {"recipe": options.recipe, "protocol": options.protocol}
    if options.corpus:
        told |= {"corpus": Path(options.corpus).name, "half": options.half}
        if options.checkpoint:
            told["checkpoint"] = (
                Path(options.checkpoint).name if Path(options.checkpoint).exists() else options.checkpoint
            )
        ends = []
    else:
        told |= {"folds": options.folds, "seed": options.seed}
        ends = [word for condition in options.condition or [] for word in ("--condition", condition)]
        ends += ["--held-out", options.held_out]
    words = [word for name, value in told.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["python", "-m", "train.evaluate", *words, *ends])


def _parse_folds(text: str | None, protocol: str) -> list[int]:
    possible = list(FOLDS) if protocol == "speaker-independent" else [1]
    wanted = f"some of {','.join(map(str, possible))}"
    folds = possible if text is None else _parse_numbers(text, "--folds", wanted)
    if not set(folds) <= set(possible):
        raise ValueError(f"--folds {text}: give {wanted}, separated by commas.")
    return folds


def _parse_numbers(text: str, option: str, wanted: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: give {wanted}, separated by commas.") from None


if __name__ == "__main__":
    sys.exit(main())
