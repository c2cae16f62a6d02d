"""Processes that share their results: ``python tests/azurite.py python examples/shared_results.py``.

Three worker processes cross-validate models on the diabetes data of scikit-learn and put their
scores into one dictionary on Azure Blob Storage. Each takes its next task from a shared list, and
keeps a shared leaderboard, under locks. The parent looks on, and prints a table at the end.

The connection string is taken from ``AZURE_STORAGE_CONNECTION_STRING``.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import uuid
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Lasso, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import SVR

from remotedict.azure import AzureDictionary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess

CONTAINER = "shared-results"
WORKERS = 3
FOLDS = 5
LEADERS = 3

GRIDS: dict[type, dict[str, list[Any]]] = {
    SVR: {"C": [1.0, 10.0, 100.0], "kernel": ["linear", "rbf"]},
    KNeighborsRegressor: {"n_neighbors": [5, 15, 45]},
    RandomForestRegressor: {"n_estimators": [20, 40], "max_depth": [3, 6]},
    GradientBoostingRegressor: {"n_estimators": [30, 60], "learning_rate": [0.05, 0.1]},
    Lasso: {"alpha": [0.01, 0.1, 1.0]},
    Ridge: {"alpha": [0.01, 0.1, 1.0]},
}


def tasks() -> dict[str, Any]:
    """Return an untrained model for each name."""
    return {
        f"{model.__name__}({', '.join(f'{k}={v}' for k, v in options.items())})": model(**options)
        for model, grid in GRIDS.items()
        for values in product(*grid.values())
        for options in [dict(zip(grid, values, strict=True))]
    }


def work(folder: str) -> None:
    """Take one task after the other until none is left. Runs in a process of its own."""
    np.random.seed(0)  # noqa: NPY002 - what scikit-learn uses
    with AzureDictionary(container_name=CONTAINER, folder_name=folder) as d:
        features, target = d[["data/features", "data/target"]]
        while (task := next_task(d)) is not None:
            began = time.perf_counter()
            scores = cross_val_score(d[f"model/{task}"], features, target, cv=FOLDS, scoring="r2")
            d[f"result/{task}"] = {
                "scores": scores,
                "seconds": time.perf_counter() - began,
                "process": os.getpid(),
            }
            note(d, task, float(np.mean(scores)))


def next_task(d: AzureDictionary) -> str | None:
    """Take a task from the shared list: under its lock no two processes get the same."""
    with d.lock("todo"):
        todo = d["todo"]
        if todo:
            d["todo"] = todo[1:]
    return todo[0] if todo else None


def note(d: AzureDictionary, task: str, score: float) -> None:
    """Put a score on the shared leaderboard, if it is good enough."""
    with d.lock("leaders"):
        best = sorted([*d["leaders"], (score, task)], reverse=True)[:LEADERS]
        if best != d["leaders"]:
            d["leaders"] = best


def look_on(d: AzureDictionary, total: int, workers: Sequence[BaseProcess]) -> None:
    """Print what changes until all is done. Reading takes no lock, and needs none."""
    done, leaders = -1, None
    while done < total:
        if any(worker.exitcode for worker in workers):
            raise SystemExit("a worker failed")
        count = sum(key.startswith("result/") for key in d)
        if (count, d["leaders"]) != (done, leaders):
            done, leaders = count, d["leaders"]
            best = f"   best so far: {leaders[0][0]:.3f} {leaders[0][1]}" if leaders else ""
            print(f"{done:3} of {total} done{best}", flush=True)
        time.sleep(0.2)


def main() -> None:
    """Publish data and tasks, start the workers, look on, and print a table."""
    folder = f"run-{uuid.uuid4().hex[:8]}"
    models = tasks()
    with AzureDictionary(container_name=CONTAINER, folder_name=folder) as d:
        features, target = load_diabetes(return_X_y=True)
        d.update(
            {
                "data/features": features,
                "data/target": target,
                "todo": list(models),
                "leaders": [],
                **{f"model/{name}": model for name, model in models.items()},
            }
        )
        print(d)
        print(f"{WORKERS} processes, {len(models)} models, {features.shape} features\n")

        # A fresh interpreter for each, as on machines of their own.
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(folder,)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        look_on(d, len(models), workers)
        for worker in workers:
            worker.join()

        names = [key for key in d if key.startswith("result/")]
        results = d[names]
        table = pd.DataFrame(
            {
                "R2": [result["scores"].mean() for result in results],
                "std": [result["scores"].std() for result in results],
                "seconds": [result["seconds"] for result in results],
                "process": [result["process"] for result in results],
            },
            index=pd.Index([name.removeprefix("result/") for name in names], name="model"),
        ).sort_values("R2", ascending=False)
        print(f"\n{table.round(3).to_string()}\n")
        print(f"The shared leaderboard agrees: {[name for _, name in d['leaders']]}")
        assert [score for score, _ in d["leaders"]] == list(table["R2"][:LEADERS])
        assert d["todo"] == []
        print(d)


if __name__ == "__main__":
    main()
