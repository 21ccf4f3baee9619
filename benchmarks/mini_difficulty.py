"""How hard the mini data set is: the baseline's clip accuracy on each subset, over several seeds.

    python -m benchmarks.mini_difficulty

The baseline is the paper's network with cross-entropy alone (alpha = 1), trained for 40 epochs, the mini
data set's default. There is one row for each training. Rows that the file has already are not made again;
rows of another version of the set are dropped.
"""
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from acl_paper.console import command, project_root
from acl_paper.evaluation import accuracy, evaluate
from acl_paper.features import FeatureStore
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit
from benchmarks.mini_study import fill_rows, mini_data

BASELINE = project_root() / "figures/mini_difficulty/baseline.csv"


def baseline(store: FeatureStore, clips: pd.DataFrame, *, epochs: int, seed: int, subset: str) -> dict:
    "Train and test the baseline once; the accuracy is a share of the `n` test clips."
    config = TrainConfig(alpha=1.0, subset=subset, seed=seed, epochs=epochs)
    split = make_split(store, clips, config)
    trained = fit(split, config, device="cpu")
    predictions, _ = evaluate(trained, split.test, clips.fname, device="cpu")
    result = accuracy(predictions)
    return {"accuracy": result.value, "n": result.n}


@command
def main(data_dir: str = None,  # folder of the mini data set; made on first use
         features_dir: str = None,  # folder of the feature stores
         subsets: str = "clean all noisy noisy_small",  # which of the four
         seeds: int = 5,  # how many, from 0
         epochs: int = 40,  # of each training
         out: str = BASELINE):  # CSV file that rows are added to
    "Train and test the baseline on each subset with each seed, and print means and standard deviations."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cells = [{"seed": seed, "subset": subset} for seed in range(seeds) for subset in subsets.split()]
    measure = partial(baseline, *mini_data(data_dir, features_dir), epochs=epochs)
    accuracies = fill_rows(Path(out), cells, measure).groupby("subset")["accuracy"]
    print(accuracies.agg(["mean", "std", "count"]).round(3).to_string())


if __name__ == "__main__":
    main()
