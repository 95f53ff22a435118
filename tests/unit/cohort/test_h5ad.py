"""Files of others: what is needed is read, and what cannot be is one line that names file and element."""

import gzip
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem, write_elem
from projects import REPOSITORY, make_cohort
from scipy import sparse

from cohortgmm.cohort import h5ad
from cohortgmm.cohort.split import split_file
from cohortgmm.errors import DataError

ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
TEXT = h5py.string_dtype()
X = make_cohort().obsm["X_pca"]


@pytest.fixture
def cohort_file(tmp_path):
    """Write a cohort, change the AnnData before and the file afterwards."""

    def write(in_file=None, in_memory=None):
        cohort = make_cohort()
        if in_memory is not None:
            in_memory(cohort)
        cohort.write_h5ad(tmp_path / "c.h5ad")
        if in_file is not None:
            with h5py.File(tmp_path / "c.h5ad", "r+") as file:
                in_file(file)
        return tmp_path / "c.h5ad"

    return write


def split(path, **options):
    """The patients that the pipeline finds in a file."""
    given = {"patient_col": "patient", "label_col": "condition", "use_rep": "X_pca", "train_size": 0.5, "seed": 0}
    folder = path.parent / "patients"
    files = (path, folder, path.parent / "patients.tsv", path.parent / "positions.npz")
    split_file(*files, component_sharing="sample_specific", **given | options)
    return sorted(file.stem for file in folder.glob("*.npz"))


def refusal(function, *arguments, **options):
    with pytest.raises(DataError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path, values, **attributes):
    """Replace an element of a file."""

    def change(file):
        file.pop(path, None)
        file[path] = values
        file[path].attrs.update(ARRAY | attributes)

    return change


# Rows that do not fit


@pytest.mark.parametrize(
    ("path", "values", "options", "said"),
    [
        ("obsm/X_pca", np.ones((200, 3)), {}, "obsm['X_pca'] has 200 rows for 180 cells: it needs one row for each"),
        ("obsm/X_pca", X[:100], {}, "obsm['X_pca'] has 100 rows for 180 cells: it needs one row for each"),
        (
            "obsm/X_pca",
            X.T,
            {},
            "obsm['X_pca'] has 3 rows for 180 cells, it looks transposed: it needs one row for each",
        ),
        ("X", np.ones((5, 1)), {"use_rep": None}, "X has 5 rows for 180 cells: it needs one row for each"),
        ("X", np.ones((180, 2)), {"use_rep": None}, "X has 2 columns for 1 genes: it needs one column for each"),
        ("obs/patient", np.arange(5), {}, "obs['patient'] has 5 rows for 180 cells: it needs one row for each"),
        ("obs/condition", np.arange(181), {}, "obs['condition'] has 181 rows for 180 cells: it needs one row for each"),
        (
            "obsm/v",
            np.ones((179, 3)),
            {"noise": {"obsm": "v", "layer": None}},
            "obsm['v'] has 179 rows for 180 cells: it needs one row for each",
        ),
        (
            "layers/v",
            np.ones((1, 180)),
            {"noise": {"obsm": None, "layer": "v"}, "use_rep": None},
            "layers['v'] has 1 rows for 180 cells, it looks transposed: it needs one row for each",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_rows_that_do_not_fit(cohort_file, path, values, options, said):
    file = cohort_file(put(path, values))
    assert refusal(split, file, **options) == f"{file}: {said}"


def test_a_table_of_other_cells_is_refused(cohort_file):
    def swap(file):
        names = read_elem(file["obs/_index"])
        write_elem(file["obsm/X_pca"], "_index", names[::-1])

    def table(cohort):
        cohort.obsm["X_pca"] = pd.DataFrame(X, index=cohort.obs_names, columns=["a", "b", "c"])

    file = cohort_file(in_memory=table)
    assert split(file) == ["P1", "P2", "P3"]
    assert "obsm['X_pca'] is a table whose rows are not the cells of obs in the same order" in refusal(
        split, cohort_file(swap, table)
    )

    def twice(file):
        file["obsm/X_pca"].attrs["column-order"] = np.array(["a", "a", "c"], dtype=TEXT)

    assert "obsm['X_pca'] has two columns of the name 'a'" in refusal(split, cohort_file(twice, table))


@pytest.mark.parametrize("kind", ["index", "negative", "pointer", "rows", "data"])
def test_damaged_sparse_matrices_are_refused(cohort_file, kind):
    def damage(file):
        group = file["obsm/s"]
        if kind == "index":
            group["indices"][5] = 900
        elif kind == "negative":
            group["indices"][5] = -3
        elif kind == "pointer":
            group["indptr"][3] = 10**6
        elif kind == "rows":
            group.attrs["shape"] = (90, 3)
        else:
            data = group["data"][:-4]
            del group["data"]
            group["data"] = data

    file = cohort_file(damage, lambda cohort: cohort.obsm.update(s=sparse.csr_matrix(X)))
    expected = "obsm['s'] has 90 rows for 180 cells" if kind == "rows" else "obsm['s'] is a damaged sparse matrix"
    assert expected in refusal(split, file, use_rep="s")


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">f8", ">i2", "bool", "uint8"])
def test_sparse_matrices_of_every_type(cohort_file, dtype):
    values = np.abs(np.round(X))

    def change(file):
        data = file["obsm/s/data"][:]
        del file["obsm/s/data"]
        file["obsm/s/data"] = data.astype(dtype)

    path = cohort_file(change, lambda cohort: cohort.obsm.update(s=sparse.csc_matrix(values)))
    split(path, use_rep="s")
    cells = np.load(path.parent / "patients" / "P1.npz")["x"]
    assert cells.dtype in (np.float32, np.float64)
    np.testing.assert_array_equal(np.sort(cells, axis=0), np.sort(values[:60].astype(dtype).astype(float), axis=0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (X.astype(np.float16), ""),
        (np.round(X).astype(np.int8), ""),
        (X > 0, ""),
        (X + 1j, "obsm['X_pca'] must hold real numbers, got complex64"),
        (X.astype("S8"), "obsm['X_pca'] must hold real numbers, got |S8"),
        (X[:, 0], "obsm['X_pca'] must be a numeric matrix (cells, features), got float32 of shape (180,)"),
        (3.0, "obsm['X_pca'] must be a numeric matrix (cells, features), got float64 of shape ()"),
    ],
    ids=["half", "integers", "booleans", "complex", "text", "flat", "a number"],
)
def test_matrices_of_every_type(cohort_file, values, said):
    path = cohort_file(put("obsm/X_pca", values))
    if said:
        assert refusal(split, path) == said
        return
    split(path)
    cells = np.load(path.parent / "patients" / "P1.npz")["x"]
    assert cells.dtype in (np.float32, np.float64)
    np.testing.assert_array_equal(np.sort(cells, axis=0), np.sort(values[:60].astype(float), axis=0))


# Only what is needed is read


def test_unknown_formats_beside_what_is_needed_do_not_matter(cohort_file):
    def spoil(file):
        for path in ("obs/cell_type", "uns", "var"):
            file[path].attrs["encoding-type"] = "from the future"
        file.create_group("obsm/strange").attrs["encoding-type"] = "gpu"

    file = cohort_file(spoil)
    assert split(file) == ["P1", "P2", "P3"]
    said = refusal(split, file, label_col="cell_type")
    assert said.startswith(f"{file}: obs/cell_type cannot be read: its format 'from the future 0.2.0'")
    assert "update anndata" in said
    assert f"{file}: obsm/strange cannot be read: its format 'gpu'" in refusal(split, file, use_rep="strange")


@pytest.mark.parametrize("layout", ["names in _index", "column _index", "no _index", "no order", "one column", "bytes"])
def test_tables_as_others_write_them(cohort_file, layout):
    def change(file):
        obs = file["obs"]
        names = read_elem(obs[obs.attrs["_index"]])
        if layout == "column _index":
            write_elem(obs, "cells", names)
            write_elem(obs, "_index", names)
            obs.attrs["_index"] = "cells"
            obs.attrs["column-order"] = np.array([*obs.attrs["column-order"], "_index"], dtype=TEXT)
        elif layout == "names in _index":
            write_elem(obs, "_index", names)
            obs.attrs["_index"] = "_index"
        elif layout == "no _index":
            del obs.attrs["_index"]
        elif layout == "no order":
            del obs.attrs["column-order"]
        else:
            obs.attrs["column-order"] = "patient" if layout == "one column" else np.array([b"patient"])

    file = cohort_file(change)
    assert split(file, label_col=None) == ["P1", "P2", "P3"]
    with h5py.File(file) as opened:
        assert h5ad.row_names(opened, "obs").tolist() == make_cohort().obs_names.tolist()
        assert h5ad.n_rows(opened, "obs") == 180
        assert "patient" in h5ad.table_columns(opened, "obs")


def test_names_with_slashes_are_found_and_lead_nowhere_else(cohort_file):
    def change(file):
        file["obs"].move("patient", "a/p")
        file["obs"].attrs["column-order"] = np.array(["a/p", "condition"], dtype=TEXT)
        file["obsm"].move("X_pca", "X/pca")

    assert split(cohort_file(change), patient_col="a/p", use_rep="X/pca") == ["P1", "P2", "P3"]
    for key in ("/X_pca", "./X_pca", "..", "", "X_pca/", "/obsm/X_pca", "X_pca\0"):
        assert f"use_rep: obsm key {key!r} is not in the data" in refusal(split, cohort_file(), use_rep=key)


def test_categories_as_anndata_0_7_wrote_them(cohort_file):
    def change(file):
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        for column in ("patient", "condition"):
            values = pd.Categorical(read_elem(obs[column]))
            del obs[column]
            obs[column] = np.asarray(values.codes)
            write_elem(obs.require_group("__categories"), column, np.asarray(values.categories, dtype=object))
            obs[column].attrs["categories"] = obs["__categories"][column].ref

    file = cohort_file(change)
    assert split(file) == ["P1", "P2", "P3"]
    with h5py.File(file) as opened:
        assert h5ad.read_obs(opened, ["condition"])["condition"].tolist() == make_cohort().obs["condition"].tolist()


@pytest.mark.parametrize(
    ("values", "patients"),
    [
        (pd.Categorical(np.repeat([7, 5, 6], 60)), ["5", "6", "7"]),
        (pd.array(np.repeat([1, 2, 3], 60), dtype="Int64"), ["1", "2", "3"]),
        (pd.array(np.repeat([True, False, True], 60), dtype="boolean"), ["False", "True"]),
    ],
    ids=["categories of integers", "nullable integers", "nullable booleans"],
)
def test_columns_of_every_type(cohort_file, values, patients):
    def add(cohort):
        cohort.obs["id"] = values

    assert split(cohort_file(in_memory=add), patient_col="id", label_col=None) == patients


def test_texts_in_other_encodings(cohort_file):
    utf8 = np.repeat(np.array(["Müller".encode(), b"Meier", b"Lee"]), 60)
    assert split(cohort_file(put("obs/patient", utf8))) == ["Lee", "M=C3=BCller", "Meier"]

    def latin1(file):
        del file["obs/patient"]
        names = np.array([b"M\xfcller"] * 180, dtype=object)
        file.create_dataset("obs/patient", data=names, dtype=h5py.string_dtype("ascii"))
        file["obs/patient"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})

    file = cohort_file(latin1)
    assert refusal(split, file).startswith(f"{file}: obs/patient cannot be read: UnicodeDecodeError")


def test_a_column_of_obs_that_is_there_twice(cohort_file):
    def change(file):
        file["obs"].attrs["column-order"] = np.array(["patient", "patient", "condition"], dtype=TEXT)

    assert refusal(split, cohort_file(change)) == (
        "patient_col: obs has 2 columns of the name 'patient': rename all but one"
    )


# Packed, damaged, linked


def _compressed(path, name):
    """Pack an element with gzip, by itself in one chunk."""
    with h5py.File(path, "r+") as file:
        values, attributes = file[name][:], dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values, chunks=values.shape, compression="gzip", fletcher32=True)
        file[name].attrs.update(attributes)
        chunk = file[name].id.get_chunk_info(0)
        return chunk.byte_offset, chunk.size


def test_a_damaged_element_is_named(cohort_file):
    path = cohort_file()
    offset, size = _compressed(path, "obsm/X_pca")
    content = bytearray(path.read_bytes())
    content[offset + size // 2 : offset + size // 2 + 8] = b"\xff" * 8
    path.write_bytes(content)
    said = refusal(split, path)
    assert said.startswith(f"{path}: obsm/X_pca cannot be read: OSError: ")
    assert said.endswith("is the file damaged?")


ZSTD = """
import sys, h5py, hdf5plugin
with h5py.File(sys.argv[1], "r+") as file:
    values, attributes = file["obsm/X_pca"][:], dict(file["obsm/X_pca"].attrs)
    del file["obsm/X_pca"]
    file.create_dataset("obsm/X_pca", data=values, chunks=True, **hdf5plugin.Zstd())
    file["obsm/X_pca"].attrs.update(attributes)
"""

READ = """
import sys
if sys.argv[2] == "without":
    sys.modules["hdf5plugin"] = None
from cohortgmm.cohort.h5ad import open_h5ad, read_element
from cohortgmm.errors import DataError
with open_h5ad(sys.argv[1]) as file:
    try:
        print(read_element(file, "obsm/X_pca").sum(dtype=float))
    except DataError as error:
        print(error)
"""


def python(code, *arguments):
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_packed_with_zstd(cohort_file):
    path = cohort_file()
    python(ZSTD, path)
    assert float(python(READ, path, "with")) == pytest.approx(X.sum(dtype=float))
    assert python(READ, path, "without") == (
        f"{path}: obsm/X_pca is compressed with the HDF5 filter 32015 (HDF5 zstd filter), which is not installed: "
        "pip install hdf5plugin, or write the file again with gzip"
    )


def link(path, target):
    def change(file):
        del file[path]
        file[path] = target

    return change


@pytest.mark.parametrize(
    ("path", "target", "said"),
    [
        (
            "obsm/X_pca",
            h5py.ExternalLink("gone.h5", "x"),
            "obsm/X_pca is a link to x in gone.h5, which cannot be opened",
        ),
        ("obsm/X_pca", h5py.SoftLink("/nowhere"), "obsm/X_pca is a link to /nowhere, which cannot be opened"),
        ("obs/patient", h5py.ExternalLink("gone.h5", "x"), "obs/patient is a link to x in gone.h5"),
        ("obs", h5py.ExternalLink("gone.h5", "x"), "obs is a link to x in gone.h5"),
        ("obsm", h5py.ExternalLink("gone.h5", "x"), "obsm is a link to x in gone.h5"),
    ],
    ids=["external", "soft", "column", "obs", "obsm"],
)
def test_links_to_what_is_gone(cohort_file, path, target, said):
    file = cohort_file(link(path, target))
    assert refusal(split, file).startswith(f"{file}: {said}")


def test_values_in_another_file_that_is_gone(cohort_file, tmp_path):
    def virtual(file):
        layout = h5py.VirtualLayout(X.shape, X.dtype)
        layout[:] = h5py.VirtualSource("v.h5", "x", X.shape)
        del file["obsm/X_pca"]
        file.create_virtual_dataset("obsm/X_pca", layout)
        file["obsm/X_pca"].attrs.update(ARRAY)

    with h5py.File(tmp_path / "v.h5", "w") as other:
        other["x"] = X
    file = cohort_file(virtual)
    assert split(file) == ["P1", "P2", "P3"]
    (tmp_path / "v.h5").unlink()
    assert (
        refusal(split, file)
        == f"{file}: obsm/X_pca is stored in the file v.h5, which is missing: put it into the same folder"
    )


# Files of another kind


def layout_of(*names):
    def write(path):
        with h5py.File(path, "w") as file:
            for name in names:
                file.create_group(name)

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            layout_of("obs", "var", "mod/rna", "mod/prot"),
            "MuData with the modalities prot, rna, not AnnData: write one",
        ),
        (
            layout_of("matrix/barcodes", "matrix/features"),
            "a 10x matrix, not AnnData: write it with scanpy.read_10x_h5",
        ),
        (layout_of("hg19/barcodes", "hg19/genes"), "a 10x matrix, not AnnData"),
        (layout_of("matrix", "row_attrs", "col_attrs"), "a loom file, not AnnData"),
        (layout_of("assays", "cell.names"), "an h5Seurat file, not AnnData"),
        (layout_of("table"), "an HDF5 file, but not an AnnData one (it has no obs and var)"),
        (lambda path: path.write_bytes(gzip.compress(b"x")), "not an .h5ad file (Unable to synchronously open file"),
        (lambda path: path.write_bytes(b""), "not an .h5ad file (Unable to synchronously open file"),
    ],
    ids=["MuData", "10x", "10x of old", "loom", "h5Seurat", "HDF5", "gzip", "empty"],
)
def test_files_of_another_kind(tmp_path, write, said):
    path = tmp_path / "x.h5ad"
    write(path)
    assert refusal(split, path).startswith(f"{path}: {said}")


def test_folders(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    path = tmp_path / "x.zarr"
    assert refusal(split, path) == (
        f"{path}: a folder of zarr, not an .h5ad file: write it as .h5ad: "
        f"anndata.read_zarr({str(path)!r}).write_h5ad('cohort.h5ad')"
    )
    (tmp_path / "plain").mkdir()
    assert refusal(split, tmp_path / "plain") == f"{tmp_path}/plain: a folder, not an .h5ad file"
    (tmp_path / "plain" / ".zgroup").write_text("{}")
    assert "a folder of zarr" in refusal(split, tmp_path / "plain")


def test_a_file_that_another_program_writes(cohort_file):
    path = cohort_file()
    with h5py.File(path, "r+"):
        said = python(
            "import sys\nfrom cohortgmm.cohort.h5ad import open_h5ad\n"
            "try:\n    open_h5ad(sys.argv[1]).__enter__()\nexcept ValueError as error:\n    print(error)",
            path,
        )
    assert said.startswith(f"{path}: another program has locked the file")
    assert "HDF5_USE_FILE_LOCKING=FALSE" in said


def test_names_that_look_the_same():
    said = str(h5ad.unknown_name("patient", "Jose\u0301", ["Jos\u00e9", "Ann"]))
    assert said == (
        "patient 'Jose\u0301' is not in the data; 'Jos\u00e9' looks the same, but its characters differ "
        "('Jose\\u0301' and 'Jos\\xe9'); known: Ann, Jos\u00e9"
    )
