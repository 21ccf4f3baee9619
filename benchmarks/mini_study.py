"""What studies on the synthetic mini data set share: its data, and a CSV file of trainings."""
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from acl_paper.console import make_folder, write_atomically
from acl_paper.data import load_clips, locate_dataset
from acl_paper.features import FeatureStore, feature_store
from acl_paper.mini import MINI_VERSION

def mini_data(data_dir: str | None, features_dir: str | None) -> tuple[FeatureStore, pd.DataFrame]:
    """The features of the mini data set and its table of clips; made on first use.

    Parameters
    ----------
    data_dir : str or None
        Folder of the mini data set.
    features_dir : str or None
        Folder of the feature stores.
    """
    location = locate_dataset("mini", data_dir)
    return feature_store(location, features_dir=features_dir), load_clips(location.root)


def fill_rows(path: Path, cells: Iterable[dict], measure: Callable[..., dict]) -> pd.DataFrame:
    """Measure what a file has not yet, and keep each row as it comes.

    Parameters
    ----------
    path : Path
        CSV file. Its rows of another version of the data set are dropped, those of other cells stay.
    cells : iterable of dict
        What the rows differ in, by column.
    measure : callable
        Called with a cell's values; returns the other columns.

    Returns
    -------
    DataFrame
        All rows, in the order in which they were made.
    """
    make_folder(path.parent, "the rows")
    rows = []
    if path.is_file():
        found = pd.read_csv(path, dtype={"right": str})
        rows = found[found.mini_version == MINI_VERSION].to_dict("records")
    for cell in cells:
        if any(cell.items() <= row.items() for row in rows):
            continue
        rows.append(cell | measure(**cell) | {"mini_version": MINI_VERSION})
        write_atomically(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.4f"))
        print(f"{path.name}: {len(rows)} rows, the last of {', '.join(map(str, cell.values()))}", flush=True)
    return pd.DataFrame(rows)
