"""What a run says of its preprocessing at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cohortgmm.cohort.filter_notes import filter_notes, read_summary
from cohortgmm.errors import DataError

SOURCE = Path(__file__).parents[3] / "src"
QUIET = {"n_cells_input": 1990, "n_cells": 1900, "filters": [], "patients_without_cells": [], "kept": []}


def with_filters(n_cells, *rows):
    keys = ("key", "limit", "n_failed")
    return QUIET | {"n_cells": n_cells, "filters": [dict(zip(keys, row, strict=True)) for row in rows]}


def test_nothing_is_said_where_all_is_as_it_was_asked_for():
    assert filter_notes(QUIET) == []
    assert filter_notes(with_filters(1900, ("min_counts", 500, 90))) == []
    assert filter_notes({}) == []
    assert filter_notes({"n_cells_input": 0, "n_cells": 0}) == []


def test_half_of_the_cells_left_out():
    notes = filter_notes(with_filters(756, ("min_genes", 200, 334), ("max_mito_percent", 15.0, 900)))
    assert notes == [
        "preprocessing left out 62 % of the cells (1,234 of 1,990): 900 by max_mito_percent (15), 334 by min_genes (200)"
    ]
    assert filter_notes(with_filters(996, ("min_genes", 200, 994))) == []  # 49.9 %
    assert filter_notes(with_filters(995, ("no counts", None, 995))) == [
        "preprocessing left out 50 % of the cells (995 of 1,990): 995 by no counts"
    ]


def test_cells_that_fail_several_filters_and_a_share_that_is_not_all():
    (note,) = filter_notes(with_filters(1, ("min_genes", 200, 1989), ("min_counts", 500, 1000)))
    assert note == (
        "preprocessing left out 99 % of the cells (1,989 of 1,990): 1,989 by min_genes (200), 1,000 by min_counts (500) "
        "(a cell may fail several filters)"
    )


def test_filters_without_effect():
    filters = [("no counts", None, 0), ("min_counts", 500, 0), ("min_genes", 200, 90), ("max_mito_percent", 12.5, 0)]
    assert filter_notes(with_filters(1900, *filters)) == [
        "no cell was left out by preprocess.min_counts (500) or max_mito_percent (12.5)"
    ]


def test_patients_entries_and_genes():
    kept = [{"entry": "layers['counts']", "kept_as": "layers['counts_input']"}]
    notes = filter_notes(QUIET | {"patients_without_cells": ["P{1}"], "kept": kept, "renamed_genes": 1})
    assert notes == [
        "no cell of 1 patient passed the preprocessing: 'P{1}'",
        "preprocessing renamed entries of the input whose names it uses: layers['counts'] as layers['counts_input']",
        "1 gene got a suffix, because other genes have the same names",
    ]
    (note,) = filter_notes(QUIET | {"patients_without_cells": [f"P{i}" for i in range(7)]})
    assert note == "no cell of 7 patients passed the preprocessing: 'P0', 'P1', 'P2', 'P3', 'P4', ..."
    (note,) = filter_notes(QUIET | {"renamed_genes": 1200})
    assert note == "1,200 genes got a suffix, because other genes have the same names"


def test_the_summary_is_read_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(DataError, match=r"summary\.json: cannot be read"):
        read_summary(path)
    for damaged in ("", '{"n_cells": 1', "[1]", "{}", "\x00"):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"summary\.json: damaged, or no summary of the preprocessing"):
            read_summary(path)
    path.write_text(json.dumps(QUIET))
    assert read_summary(path) == QUIET


def test_the_module_needs_the_standard_library_only():
    heavy = {"numpy", "anndata", "pandas", "h5py", "pydantic"}
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import cohortgmm.cohort.filter_notes; "
    code += f"print({heavy} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"
