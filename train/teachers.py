"""`python -m train.teachers`: trains the networks that give a recipe's soft labels, and writes these."""

import argparse
import dataclasses
import functools
import os
import shlex
import sys
from pathlib import Path

from ser_model.audio import AudioError

from . import recipe as recipes
from .evaluate import run_all
from .ravdess import RavdessError
from .soft_labels import PAIRS, soft_labels_path, write_soft_labels
from .train import explain, train, use_one_thread
from .trainer import RunError


def teach(
    recipe: recipes.Recipe,
    *,
    runs_dir: Path,
    data_dir: str | None = None,
    seed: int = 0,
    allow_incomplete: bool = False,
    jobs: int = 1,
) -> list[dict]:
    """
    Trains (or reads, where it is finished) one network of the recipe, without soft labels, for each pair of folds, on the
    actors of the other three. Returns their runs.
    """
    # The recipe's temperature was fitted to networks that have learnt soft labels.
    plain = dataclasses.replace(
        recipe,
        augmentation=dataclasses.replace(recipe.augmentation, soft_label_weight=0.0),
        model={**recipe.model, "temperature": 1.0},
    )
    tasks = [
        functools.partial(
            train,
            plain,
            runs_dir / f"{recipe.name}.teachers.seed-{seed}" / f"folds-{pair[0]}-{pair[1]}",
            data_dir=data_dir,
            protocol="speaker-independent",
            fold=pair,
            seed=seed,
            allow_incomplete=allow_incomplete,
            quiet=jobs > 1,
        )
        for pair in PAIRS
    ]
    return run_all(tasks, jobs)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.teachers", description=__doc__)
    parser.add_argument("--recipe", default="ser-base", help="name of a recipe, or a YAML file (default: %(default)s)")
    parser.add_argument("--data", help="folder that holds RAVDESS; left out, it is downloaded from Zenodo and cached")
    parser.add_argument("--output", help="soft labels (default: train/results/RECIPE.soft-labels.json)")
    parser.add_argument("--runs", default="runs", help="folder for the networks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="networks side by side (default: %(default)s, the cores)"
    )
    parser.add_argument("--allow-incomplete", action="store_true", help="accept fewer recordings than RAVDESS has")
    options = parser.parse_args(arguments)
    use_one_thread()
    try:
        recipe = recipes.load_recipe(options.recipe)
        path = Path(options.output) if options.output else soft_labels_path(recipe.name)
        runs = teach(
            recipe,
            runs_dir=Path(options.runs),
            data_dir=options.data,
            seed=options.seed,
            allow_incomplete=options.allow_incomplete,
            jobs=max(options.jobs, 1),
        )
        told = shlex.join(["--recipe", options.recipe, "--seed", str(options.seed)])
        write_soft_labels(runs, path, command=f"python -m train.teachers {told}")
    except (AudioError, RavdessError, RunError, ValueError, OSError) as error:
        return explain(error)
    print(f"Written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
