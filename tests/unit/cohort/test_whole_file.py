"""Files that hold what anndata reads and cannot write, or cannot read."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.cohort.filter_notes import filter_notes, read_summary
from cohortgmm.cohort.preprocess import preprocess_file
from cohortgmm.cohort.whole_file import read_cohort, write_cohort
from cohortgmm.config import PreprocessConfig
from cohortgmm.errors import DataError

N, G = 60, 40
OPTIONS = PreprocessConfig(n_pcs=4, n_top_genes=20, min_cells_per_gene=0)


@pytest.fixture
def source(tmp_path):
    """A file with an entry of every kind."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(1, 2, size=G) + 0.3, (N, G)).astype(np.float32))
    obs = pd.DataFrame({"patient": ["a", "b"] * (N // 2), "other": 1.0}, index=[f"c{i:03d}" for i in range(N)])
    adata = ad.AnnData(
        counts, obs=obs, layers={"umi": counts}, obsm={"E": np.ones((N, 2))}, uns={"mine": {"x": np.arange(3)}}
    )
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


def done(source, **options):
    """The summary of the preprocessing, and the file that it wrote."""
    target, summary = source.with_name("out.h5ad"), source.with_name("summary.json")
    preprocess_file(source, target, OPTIONS.model_copy(update=options), 0, summary=summary)
    return read_summary(summary), target


def refused(source, **options):
    with pytest.raises(DataError) as caught:
        done(source, **options)
    assert not source.with_name("out.h5ad").exists()
    return str(caught.value).replace(ad.__version__, "VERSION")


def make_unknown(source, path):
    with h5py.File(source, "a") as file:
        file[path].attrs["encoding-type"] = "of the future"


@pytest.mark.parametrize(
    ("path", "entry"),
    [("obsm/E", "obsm['E']"), ("layers/umi", "layers['umi']"), ("obs/other", "obs['other']"), ("raw/X", "raw['X']")],
)
def test_what_cannot_be_read_and_is_not_needed_is_left_out_and_said(source, path, entry):
    expected = ad.read_h5ad(done(source)[1]).obsm["X_pca"]
    make_unknown(source, path)
    summary, target = done(source)
    assert filter_notes(summary) == [f"the result lacks entries of the input that anndata cannot read: {entry}"]
    result = ad.read_h5ad(target)
    np.testing.assert_array_equal(result.obsm["X_pca"], expected)
    assert result.obs["patient"].tolist() == ["a", "b"] * (N // 2)


@pytest.mark.parametrize("path", ["uns/mine", "uns/mine/x"])
def test_what_cannot_be_read_of_uns_is_copied_as_it_is(source, path):
    make_unknown(source, path)
    summary, target = done(source)
    assert filter_notes(summary) == []
    with h5py.File(target) as file:
        assert file["uns/mine/x"][:].tolist() == [0, 1, 2]
        assert file[path].attrs["encoding-type"] == "of the future"
        assert file["obsm/X_pca"].shape == (N, 4)


@pytest.mark.parametrize(("path", "counts"), [("X", "X"), ("layers/umi", "layer:umi"), ("raw/X", "raw")])
def test_what_is_needed_and_cannot_be_read_is_named(source, path, counts):
    make_unknown(source, path)
    assert refused(source, counts=counts).startswith(f"{source}: anndata VERSION cannot read ")
    if counts != "X":
        done(source)


@pytest.mark.parametrize("table", ["obs", "var", "raw/var"])
def test_a_column_whose_name_anndata_keeps_for_itself(source, table):
    with h5py.File(source, "a") as file:
        group = file[table]
        n = {"obs": 60, "var": 40, "raw/var": 40}[table]
        group.move(group.attrs["_index"], "names")
        group.attrs["_index"] = "names"
        group.create_dataset("_index", data=np.arange(n))
        group.attrs["column-order"] = np.array([*group.attrs["column-order"], "_index"], dtype=object)
    summary, target = done(source)
    name = table.replace("/", ".")
    assert summary["kept"] == [{"entry": f"{name}['_index']", "kept_as": f"{name}['_index_input']"}]
    result = ad.read_h5ad(target)
    frame = {"obs": result.obs, "var": result.var, "raw/var": result.raw.var}[table]
    assert frame["_index_input"].tolist() == list(range(n))


def test_keys_with_a_slash(source):
    with h5py.File(source, "a") as file:  # as anndata wrote it before 0.13
        file.copy("obsm/E", "obsm/X/y")
        file.copy("X", "layers/a/b")
    summary, target = done(source)
    assert summary["kept"] == [
        {"entry": "obsm['X/y']", "kept_as": "obsm['X_y']"},
        {"entry": "layers['a/b']", "kept_as": "layers['a_b']"},
    ]
    assert {"E", "X_y", "X_pca"} == set(ad.read_h5ad(target).obsm)


@pytest.mark.parametrize("path", ["X", "layers/umi", "raw/X"])
def test_sparse_counts_in_half_precision(source, path):
    expected = ad.read_h5ad(done(source)[1]).obsm["X_pca"]
    with h5py.File(source, "a") as file:
        data = file[f"{path}/data"][:]
        del file[f"{path}/data"]
        file[path].create_dataset("data", data=data.astype(np.float16))
    place = {"X": "X", "layers/umi": "layer:umi", "raw/X": "raw"}[path]
    np.testing.assert_array_equal(ad.read_h5ad(done(source, counts=place)[1]).obsm["X_pca"], expected)


def test_nullable_columns_stay(source):
    adata = ad.read_h5ad(source)
    adata.obs["text"] = pd.array(["a", None] * (N // 2), dtype="string")
    adata.obs["number"] = pd.array([1, None] * (N // 2), dtype="Int64")
    adata.write_h5ad(source)
    result = ad.read_h5ad(done(source)[1])
    assert result.obs["number"].isna().sum() == result.obs["text"].isna().sum() == N // 2


def test_entries_of_other_cells_are_refused(source):
    with h5py.File(source, "a") as file:
        rows = file["obsm/E"][:5]
        del file["obsm/E"]
        file["obsm"].create_dataset("E", data=rows)
        file["obsm/E"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    assert refused(source).startswith(f"{source}: its entries do not fit together (ValueError: ")


def test_links_to_what_is_not_there_are_left_out_and_said(tmp_path):
    adata = ad.AnnData(np.ones((4, 3), dtype=np.float32), uns={"nested": {"a": np.arange(2)}, "kept": np.arange(3)})
    adata.raw = ad.AnnData(np.ones((4, 3), dtype=np.float32), varm={"PCs": np.ones((3, 2))})
    adata.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "side.h5", "w") as side:
        side["values"] = np.arange(5)
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        file["uns/gone"] = h5py.ExternalLink("gone.h5", "values")
        file["obsm/gone"] = h5py.ExternalLink("gone.h5", "values")
        file["uns/nested/beside"] = h5py.ExternalLink("side.h5", "values")
        file["uns/nested/strange"] = 1
        file["uns/nested/strange"].attrs.update({"encoding-type": "nobody's", "encoding-version": "9"})
    cohort = read_cohort(tmp_path / "x.h5ad", "X")
    assert cohort.left_out == ["obsm['gone']"]
    np.testing.assert_array_equal(cohort.adata.raw.varm["PCs"], np.ones((3, 2)))
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "y.h5ad"
    assert write_cohort(cohort.adata, target, tmp_path / "x.h5ad", cohort.unread) == ["uns['gone']"]
    with h5py.File(target) as file:
        assert set(file["uns"]) == {"nested", "kept"}
        assert file["uns/nested/beside"][:].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("path", ["obsm/E", "obs/number", "X"])
def test_what_lies_in_a_file_that_is_gone_is_not_read_as_zeros(source, path):
    with h5py.File(source, "a") as file:
        if path == "obs/number":
            file.create_dataset(path, data=np.arange(60.0))
            file["obs"].attrs["column-order"] = np.array([*file["obs"].attrs["column-order"], "number"], dtype=object)
        place = f"{path}/data" if isinstance(file[path], h5py.Group) else path
        values, attributes = file[place][()], dict(file[place].attrs)
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource("gone.h5", "x", values.shape)
        del file[place]
        file.create_virtual_dataset(place, layout)
        file[place].attrs.update(attributes)
    if path == "X":
        with pytest.raises(DataError, match=r"cannot read X \(.*is stored in the file gone\.h5, which is missing"):
            done(source)
        return
    summary, target = done(source)
    place, key = path.split("/")
    assert summary["unread"] == [f"{place}[{key!r}]"]
    assert key not in getattr(ad.read_h5ad(target), place)
