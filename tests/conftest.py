"""Writes down what the tests by chance tried, where `ACL_TRIED` names a file for it (`make test-all`)."""
import csv
import datetime
import os
from pathlib import Path

import pytest
from chance import SEED

from acl_paper.runs import software_versions

ROWS = []
COLUMNS = ("what", "seed", "n", "right", "refused", "wrong", "promise", "date", "versions")


@pytest.fixture
def tried(request):
    """`tried("audio files", right=200, refused=400, wrong=0)`: printed, and a row of the file; what is promised is the first line of the test's text."""
    def note(what, *, right=0, refused=0, wrong=0):
        n = right + refused + wrong
        print(f"{what}, seed {SEED}: {n} tried, {right} right, {refused} refused, {wrong} wrong")
        promise = request.function.__doc__.strip().splitlines()[0]
        versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
        ROWS.append((what, SEED, n, right, refused, wrong, promise, datetime.date.today().isoformat(), versions))
        if "ACL_TRIED" in os.environ:
            write_rows(Path(os.environ["ACL_TRIED"]))

    return note


def write_rows(path):
    """All rows of this run so far: the file says what one run tried."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *ROWS])
