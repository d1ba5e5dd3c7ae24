"""`python -m ser_model.cluster`: the emotions in recordings, scored by Ray Data on one machine or many."""

import argparse
import sys

from .results import TEXT_COLUMNS, columns, rows
from .scoring import find_recordings, load_quietly, score_file

try:
    import ray
except ImportError as error:
    raise ImportError("Scoring on a cluster needs Ray: pip install -r requirements-cluster.txt") from error

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
    parser.add_argument("--workers", type=int, default=2, help="processes over all machines (default: %(default)s)")
    parser.add_argument("--any-sound", action="store_true", help="as of python -m ser_model")
    parser.add_argument("--address", help="of a running cluster, or auto; left out, Ray starts on this machine alone")
    options = parser.parse_args(arguments)
    paths = list(dict.fromkeys(path for given in options.input for path in find_recordings(given)))
    if not paths:
        print(f"error: there is no recording in {', '.join(options.input)}.", file=sys.stderr)
        return 1
    try:
        load_quietly(options.model)  # what is wrong with a checkpoint is then said here, and once
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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


if __name__ == "__main__":
    sys.exit(main())
