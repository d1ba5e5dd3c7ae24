"""`python -m ser_model.cluster`: the emotions in recordings, scored by Ray Data on one machine or many."""

import argparse
import os
import sys

from .__main__ import count, explain
from .audio import describe
from .results import TEXT_COLUMNS, columns, rows
from .scoring import describe_others, find_files, load_quietly, score_file

FILES_AT_ONCE = 16


class Scorer:
    """What each worker keeps: one classifier."""

    def __init__(self, model: str, voice_only: bool | None):
        self.pipeline = load_quietly(model, voice_only=voice_only)
        self.labels = list(self.pipeline.model.config.id2label.values())

    def __call__(self, batch: dict) -> dict:
        """A batch of paths -> as many rows, with the columns of the CSV that `python -m ser_model` writes."""
        scored = list(rows([score_file(self.pipeline, str(path)) for path in batch["path"]], timeline=False))
        # "" and NaN, not None: every worker must give every column the same type.
        empty = {name: "" if name in TEXT_COLUMNS else float("nan") for name in columns(self.labels)}
        return {name: [row.get(name, nothing) for row in scored] for name, nothing in empty.items()}


def score_on_cluster(
    paths: list[str], output: str, *, model: str, workers: int, voice_only: bool | None = None
) -> None:
    """
    Scores recordings and writes a folder of Parquet files, one row a recording. A worker that dies is replaced and what
    it was doing done again.

    Args:
        paths: As every machine of the cluster sees them (a shared disk, or the same folders everywhere).
        output: A folder, or any address that Ray writes to.
        workers: Processes over all machines, one core each.
        voice_only: As of `load_pipeline`.
    """
    import ray

    (
        ray.data.from_items([{"path": path} for path in paths], override_num_blocks=-(-len(paths) // FILES_AT_ONCE))
        .map_batches(
            Scorer,
            fn_constructor_args=(model, voice_only),
            batch_size=FILES_AT_ONCE,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        .write_parquet(output)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ser_model.cluster", description=__doc__)
    parser.add_argument("input", nargs="+", help="recordings, or folders of them, as every machine sees them")
    parser.add_argument("--output", required=True, help="folder for the Parquet files")
    parser.add_argument("--model", default="ser-base", help="as of python -m ser_model (default: %(default)s)")
    parser.add_argument("--workers", type=count, default=2, help="processes over all machines (default: %(default)s)")
    parser.add_argument("--any-sound", action="store_true", help="as of python -m ser_model")
    parser.add_argument("--address", help="of a running cluster, or auto; left out, Ray starts on this machine alone")
    options = parser.parse_args(arguments)
    try:
        import ray
    except ImportError:
        return explain("Scoring on a cluster needs Ray: pip install -r requirements-cluster.txt")
    paths, others = find_files(options.input)
    try:
        _check_folder(options.output)
        if others:
            print(describe_others(others), file=sys.stderr)
        if not paths:
            return explain(f"there is no recording in {', '.join(map(describe, options.input))}.")
        load_quietly(options.model)  # what is wrong with a checkpoint is then said here, and once
    except (OSError, ValueError) as error:
        return explain(error)
    ray.init(address=options.address, log_to_driver=False, include_dashboard=False if options.address is None else None)
    try:
        score_on_cluster(
            paths,
            options.output,
            model=options.model,
            workers=options.workers,
            voice_only=False if options.any_sound else None,
        )
    finally:
        ray.shutdown()
    return 0


def _check_folder(output: str) -> None:
    """Refuses, before any work, what is no folder, or holds files already: the rows of a second run would join theirs."""
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        what = "holds files already" if os.path.isdir(output) else "is not a folder"
        raise ValueError(f"{describe(output)} {what}: give --output a new folder.")


if __name__ == "__main__":
    sys.exit(main())
