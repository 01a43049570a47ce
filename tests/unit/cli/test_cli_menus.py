"""`callmesh menus`: what it says of bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import menus
from cli.directory import Refused


def test_accesses_are_summed_by_leaf(tmp_path: Path) -> None:
    path = tmp_path / "accesses.csv"
    path.write_text("pay, 3\nbalance,4\npay,1\n")
    assert menus.read_accesses(path) == {"pay": 4, "balance": 4}


@pytest.mark.parametrize("row", ["pay", "pay,x", "pay,-1", "pay,1,2", f"pay,{10**12}", f"pay,{'9' * 5_000}"])
def test_a_bad_row_of_accesses_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "accesses.csv"
    path.write_text(f"pay,3\n{row}\n")
    with pytest.raises(Refused, match="row 2: must be a leaf's id and a count"):
        menus.read_accesses(path)
