"""The copy of the cohort: the mixtures are added, nothing else changes, and it is there whole or not at all."""

import hashlib
import json

import anndata as ad
import h5py
import numpy as np
import pytest
from anndata.io import write_elem
from projects import make_cohort
from scipy import sparse

import cohortgmm
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fitting import final_fit, fit_candidate, write_fit
from cohortgmm.cohort.merge import merge_models, write_gmm
from cohortgmm.cohort.schema import uns_key
from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.split import split_file
from cohortgmm.cohort.tables import SCORE_COLUMNS, write_table
from cohortgmm.config import GmmConfig
from cohortgmm.errors import OutputError

UNS = {"component_sharing": "global", "model": {"mu": np.zeros((2, 3))}, "weight_inference": {"a": 1.5}}
COMPONENTS = np.arange(180) % 2
RESP = np.eye(2)[COMPONENTS]


@pytest.fixture
def source(tmp_path):
    """A file with much besides the embedding."""
    rng = np.random.default_rng(0)
    cohort = make_cohort()
    cohort = ad.AnnData(sparse.random(180, 40, 0.2, "csr", dtype=np.float32, rng=rng), cohort.obs, obsm=cohort.obsm)
    cohort.layers["counts"] = rng.poisson(1.0, size=(180, 40))
    cohort.obs["condition"] = cohort.obs["condition"].astype("category")
    cohort.obsp["graph"] = sparse.eye(180, format="csr")
    cohort.varm["loadings"] = rng.normal(size=(40, 3))
    cohort.uns["note"] = {"nested": {"text": "kept"}, "numbers": np.arange(3)}
    cohort.raw = cohort
    cohort.write_h5ad(tmp_path / "source.h5ad", compression="gzip")
    return tmp_path / "source.h5ad"


def contents(path):
    """Every dataset of a file as stored bytes (chunk by chunk, as compressed) with its attributes."""
    result = {}

    def visit(name, item):
        result[name] = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            if item.chunks:
                chunks = [
                    item.id.read_direct_chunk(item.id.get_chunk_info(i).chunk_offset)[1]
                    for i in range(item.id.get_num_chunks())
                ]
                result[name, "data"] = b"".join(chunks)
            else:
                result[name, "data"] = np.asarray(item[()]).tolist()

    with h5py.File(path) as file:
        file.visititems(visit)
    return result


def test_all_that_was_there_stays_as_it_is(source, tmp_path):
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    write_gmm(source, tmp_path / "target.h5ad", "gmm_X_pca", UNS, COMPONENTS, RESP)
    assert hashlib.sha256(source.read_bytes()).hexdigest() == digest
    before, after = contents(source), contents(tmp_path / "target.h5ad")
    order = after["obs"].pop("column-order")
    assert order == [*before["obs"].pop("column-order"), "gmm_X_pca_comp"]
    assert {name: after[name] for name in before} == before
    assert ("X/data", "data") in before
    added = {name for name in after if name not in before and isinstance(name, str)}
    assert {name for name in added if not name.startswith("uns/gmm_X_pca")} == {
        "obs/gmm_X_pca_comp",
        "obsm/gmm_X_pca_resp",
    }


def test_what_is_added_can_be_read(source, tmp_path):
    target = tmp_path / "new" / "target.h5ad"
    write_gmm(source, target, "gmm_X_pca", UNS, COMPONENTS, RESP)
    written, original = ad.read_h5ad(target), ad.read_h5ad(source)
    assert list(written.obs.columns) == [*original.obs.columns, "gmm_X_pca_comp"]
    np.testing.assert_array_equal(written.obs["gmm_X_pca_comp"], COMPONENTS)
    np.testing.assert_array_equal(written.obsm["gmm_X_pca_resp"], RESP)
    assert written.uns["gmm_X_pca"]["weight_inference"] == {"a": 1.5}
    assert written.uns["note"]["nested"]["text"] == "kept"
    assert (written.X != original.X).nnz == 0
    assert list(target.parent.iterdir()) == [target]


def test_mixtures_under_the_same_key_are_replaced(source, tmp_path):
    write_gmm(source, tmp_path / "one.h5ad", "mine", UNS | {"old": 1}, COMPONENTS, RESP)
    write_gmm(tmp_path / "one.h5ad", tmp_path / "two.h5ad", "mine", UNS, 1 - COMPONENTS, np.ones((180, 1)))
    write_gmm(tmp_path / "two.h5ad", tmp_path / "two.h5ad", "other", UNS, COMPONENTS, RESP)
    written = ad.read_h5ad(tmp_path / "two.h5ad")
    assert written.uns["mine"].keys() == UNS.keys()
    np.testing.assert_array_equal(written.obs["mine_comp"], 1 - COMPONENTS)
    assert written.obsm["mine_resp"].shape == (180, 1)
    assert list(written.obs.columns)[-2:] == ["mine_comp", "other_comp"]
    assert "other" in written.uns


def test_a_file_without_uns_and_obsm(tmp_path):
    make_cohort().write_h5ad(tmp_path / "source.h5ad")
    with h5py.File(tmp_path / "source.h5ad", "r+") as file:
        for name in ("uns", "obsm"):
            if name in file:
                del file[name]
    write_gmm(tmp_path / "source.h5ad", tmp_path / "target.h5ad", "gmm_X", UNS, COMPONENTS, RESP)
    written = ad.read_h5ad(tmp_path / "target.h5ad")
    assert set(written.uns) == {"gmm_X"}
    assert set(written.obsm) == {"gmm_X_resp"}


def test_a_table_without_columns(tmp_path):
    cohort = make_cohort()
    cohort.obs = cohort.obs[[]]
    cohort.write_h5ad(tmp_path / "source.h5ad")
    write_gmm(tmp_path / "source.h5ad", tmp_path / "target.h5ad", "gmm_X", UNS, COMPONENTS, RESP)
    assert list(ad.read_h5ad(tmp_path / "target.h5ad").obs.columns) == ["gmm_X_comp"]


def test_categories_as_older_files_hold_them(tmp_path):
    """anndata 0.7 kept the categories of all columns together and pointed to them."""
    make_cohort().write_h5ad(tmp_path / "source.h5ad")
    with h5py.File(tmp_path / "source.h5ad", "r+") as file:
        obs = file["obs"]
        write_elem(obs.create_group("__categories"), "condition", np.array(["well", "sick"], dtype=object))
        del obs["condition"]
        obs["condition"] = np.array([0, 1, 0], dtype=np.int8).repeat(60)
        obs["condition"].attrs["categories"] = obs["__categories/condition"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    write_gmm(tmp_path / "source.h5ad", tmp_path / "target.h5ad", "gmm_X", UNS, COMPONENTS, RESP)
    written = ad.read_h5ad(tmp_path / "target.h5ad")
    assert written.obs["condition"].tolist() == ["well"] * 60 + ["sick"] * 60 + ["well"] * 60
    np.testing.assert_array_equal(written.obs["gmm_X_comp"], COMPONENTS)


def test_after_a_failure_there_is_no_target(source, tmp_path):
    class Unwritable:
        pass

    with pytest.raises(Exception, match="Unwritable"):
        write_gmm(source, tmp_path / "out" / "target.h5ad", "gmm_X", UNS | {"bad": Unwritable()}, COMPONENTS, RESP)
    assert list((tmp_path / "out").iterdir()) == []
    write_gmm(source, tmp_path / "out" / "target.h5ad", "gmm_X", UNS, COMPONENTS, RESP)
    content = (tmp_path / "out" / "target.h5ad").read_bytes()
    with pytest.raises(Exception, match="Unwritable"):
        write_gmm(source, tmp_path / "out" / "target.h5ad", "gmm_X", UNS | {"bad": Unwritable()}, COMPONENTS, RESP)
    assert (tmp_path / "out" / "target.h5ad").read_bytes() == content


def test_a_target_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/target\.h5ad"):
        write_gmm(source, tmp_path / "file" / "target.h5ad", "gmm_X", UNS, COMPONENTS, RESP)


# merge_models: the stages one after the other, as the pipeline runs them


def stages(folder, source, gmm, sharing="sample_specific", key="gmm_X_pca", **split_options):
    """Split, fit, select, refit and merge a file; gives back the merged file."""
    options = {"patient_col": "patient", "label_col": None, "use_rep": "X_pca", "component_sharing": sharing}
    options |= {"train_size": gmm.effective_train_size, "seed": 0} | split_options
    split_file(source, folder / "patients", folder / "patients.tsv", **options)
    cells = sorted((folder / "patients").iterdir())
    models, rows = [], []
    for path in cells:
        part = PatientCells.load(path)
        fitted = {k: fit_candidate(part, k, gmm.fit_options(), seed=0) for k in gmm.candidates}
        own = [row for row, _ in fitted.values()]
        k = select_k(own, gmm.k_selection_metric)["k"]
        models.append(folder / "models" / path.name)
        write_fit(models[-1], final_fit(part, k, fitted[k][1], gmm.refit, gmm.fit_options(), seed=0))
        rows += own
    write_table(folder / "scores.tsv", SCORE_COLUMNS, rows)
    merge_models(
        source,
        folder / "merged.h5ad",
        cells=cells,
        models=models,
        table=folder / "patients.tsv",
        scores=folder / "scores.tsv",
        source=source,
        gmm=gmm.model_dump(exclude={"verbose"}),
        component_sharing=sharing,
        use_rep="X_pca",
        gmm_key=key,
        seed=0,
        config=json.dumps({"a": 1}),
    )
    return folder / "merged.h5ad"


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_the_stages_give_what_fit_gmm_gives(tmp_path, sharing):
    cohort = make_cohort(("b/c", "a"))
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    gmm = GmmConfig(k_comps=[1, 2], refit="full", k_selection_metric="bic")
    merged = ad.read_h5ad(stages(tmp_path, tmp_path / "cohort.h5ad", gmm, sharing))
    cohortgmm.fit_gmm(
        cohort,
        patient_col="patient",
        use_rep="X_pca",
        component_sharing=sharing,
        k_comps=[1, 2],
        refit="full",
        k_selection_metric="bic",
        verbose=False,
    )
    ours, direct = merged.uns["gmm_X_pca"], cohort.uns["gmm_X_pca"]
    for name in ("mu", "var", "pi"):
        np.testing.assert_array_equal(ours["model"][name], direct["model"][name])
    np.testing.assert_array_equal(ours["distribution_weights"], direct["distribution_weights"])
    np.testing.assert_array_equal(merged.obsm["gmm_X_pca_resp"], cohort.obsm["gmm_X_pca_resp"])
    assert ours["weight_inference"]["distribution_ids"].tolist() == ["a", "b/c"]
    assert ours["selection"]["selection_cells_count"] == 60
    if sharing == "sample_specific":
        assert set(ours["selection"]["best_k_by_distribution"]) == {"a", uns_key("b/c")}
    provenance = ours["provenance"]
    assert provenance["source_sha256"] == hashlib.sha256((tmp_path / "cohort.h5ad").read_bytes()).hexdigest()
    assert provenance["cohortgmm"] == cohortgmm.__version__
    assert (provenance["seed"], provenance["config"]) == (0, '{"a": 1}')


def test_cells_of_a_dropped_patient_have_no_component(tmp_path):
    cohort = make_cohort()
    keep = (cohort.obs["patient"] != "P2") | (np.arange(180) % 60 < 5)
    cohort[keep].copy().write_h5ad(tmp_path / "cohort.h5ad")
    gmm = GmmConfig(k_comps=2)
    merged = stages(tmp_path, tmp_path / "cohort.h5ad", gmm, key="mine", min_cells=20, on_small_patient="drop")
    written = ad.read_h5ad(merged)
    dropped = (written.obs["patient"] == "P2").to_numpy()
    assert dropped.sum() == 5
    assert (written.obs["mine_comp"][dropped] == -1).all()
    assert (written.obs["mine_comp"][~dropped] >= 0).all()
    assert not written.obsm["mine_resp"][dropped].any()
    assert list(cohortgmm.read_gmm(merged)) == ["P1", "P3"]
    assert written.uns["mine"]["backend_metadata"]["fit_indices_count"] == 120
