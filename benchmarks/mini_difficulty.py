"""How hard the mini data set is: the baseline's clip accuracy on each subset, over several seeds.

    python -m benchmarks.mini_difficulty

The baseline is the paper's network with cross-entropy alone (alpha = 1), trained for 40 epochs, the mini
data set's default. There is one row for each training. Rows that the file has already are not made again;
rows of another version of the set are dropped.
"""
import warnings
from pathlib import Path

import pandas as pd
import torch

from acl_paper.console import command, make_folder, project_root, write_atomically
from acl_paper.data import DatasetLocation, load_clips, locate_dataset
from acl_paper.evaluation import accuracy, evaluate
from acl_paper.features import FeatureStore, feature_store
from acl_paper.mini import MINI_VERSION
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit
from benchmarks.tables import rows_on_mini

BASELINE = project_root() / "figures/mini_difficulty/baseline.csv"
COLUMNS = ["seed", "subset", "accuracy", "n", "mini_version"]


def baseline_row(location: DatasetLocation, store: FeatureStore, config: TrainConfig) -> dict:
    "Train and test the baseline once; the accuracy is a share of the `n` test clips."
    clips = load_clips(location.root)
    split = make_split(store, clips, config)
    trained = fit(split, config, device="cpu")
    predictions, _ = evaluate(trained, split.test, clips.fname, device="cpu")
    result = accuracy(predictions)
    return dict(zip(COLUMNS, [config.seed, config.subset, result.value, result.n, MINI_VERSION]))


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
    location = locate_dataset("mini", data_dir)
    store = feature_store(location, features_dir=features_dir)
    path = Path(out)
    make_folder(path.parent, "the rows")
    rows = rows_on_mini(path)
    for seed in range(seeds):
        for subset in subsets.split():
            if (seed, subset) in {(row["seed"], row["subset"]) for row in rows}:
                continue
            config = TrainConfig(alpha=1.0, subset=subset, seed=seed, epochs=epochs)
            rows.append(baseline_row(location, store, config))
            table = pd.DataFrame(rows).sort_values(["subset", "seed"])
            write_atomically(path, table.to_csv(index=False, float_format="%.4f"))
    accuracies = pd.DataFrame(rows).groupby("subset")["accuracy"]
    print(accuracies.agg(["mean", "std", "count"]).round(3).to_string())
