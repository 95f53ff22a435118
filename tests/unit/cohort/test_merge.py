"""The copy of the cohort: the mixtures are added, nothing else changes, and it is there whole or not at all."""

import hashlib
import json

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from corrected import ALL, make_corrected
from projects import make_cohort
from scipy import sparse

import cohortgmm
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import final_fit, fit_candidate, write_fit
from cohortgmm.cohort.merge import merge_models, write_gmm
from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.split import split_file
from cohortgmm.cohort.tables import SCORE_COLUMNS, write_table
from cohortgmm.cohort.uns import CellAssignment, uns_key
from cohortgmm.config import read_gmm_options
from cohortgmm.config.gmm import GmmConfig
from cohortgmm.errors import OutputError

UNS = {"component_sharing": "global", "model": {"mu": np.zeros((2, 3))}, "weight_inference": {"a": 1.5}}
COMPONENTS = np.arange(180) % 2
ASSIGNED = CellAssignment(COMPONENTS, np.eye(2)[COMPONENTS])


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
    write_gmm(source, tmp_path / "target.h5ad", "gmm_X_pca", UNS, ASSIGNED)
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
    write_gmm(source, target, "gmm_X_pca", UNS, ASSIGNED)
    written, original = ad.read_h5ad(target), ad.read_h5ad(source)
    assert list(written.obs.columns) == [*original.obs.columns, "gmm_X_pca_comp"]
    np.testing.assert_array_equal(written.obs["gmm_X_pca_comp"], COMPONENTS)
    np.testing.assert_array_equal(written.obsm["gmm_X_pca_resp"], ASSIGNED.resp)
    assert written.uns["gmm_X_pca"]["weight_inference"] == {"a": 1.5}
    assert written.uns["note"]["nested"]["text"] == "kept"
    assert (written.X != original.X).nnz == 0
    assert list(target.parent.iterdir()) == [target]


def test_mixtures_under_the_same_key_are_replaced(source, tmp_path):
    write_gmm(source, tmp_path / "one.h5ad", "mine", UNS | {"old": 1}, ASSIGNED)
    write_gmm(
        tmp_path / "one.h5ad", tmp_path / "two.h5ad", "mine", UNS, CellAssignment(1 - COMPONENTS, np.ones((180, 1)))
    )
    write_gmm(tmp_path / "two.h5ad", tmp_path / "two.h5ad", "other", UNS, ASSIGNED)
    written = ad.read_h5ad(tmp_path / "two.h5ad")
    assert written.uns["mine"].keys() == UNS.keys()
    np.testing.assert_array_equal(written.obs["mine_comp"], 1 - COMPONENTS)
    assert written.obsm["mine_resp"].shape == (180, 1)
    assert list(written.obs.columns)[-2:] == ["mine_comp", "other_comp"]
    assert "other" in written.uns


def test_the_background_of_cells_is_written_and_removed_again(source, tmp_path):
    share = np.linspace(0, 1, 180)
    target = tmp_path / "target.h5ad"
    with_background = CellAssignment(COMPONENTS, ASSIGNED.resp, share)
    original = list(ad.read_h5ad(source).obs.columns)
    write_gmm(source, target, "mine", UNS, with_background)
    written = ad.read_h5ad(target)
    np.testing.assert_array_equal(written.obs["mine_background"], share)
    assert list(written.obs.columns) == [*original, "mine_comp", "mine_background"]
    write_gmm(target, target, "other", UNS, with_background)
    write_gmm(target, target, "mine", UNS, CellAssignment(COMPONENTS, ASSIGNED.resp, 1 - share))
    written = ad.read_h5ad(target)
    np.testing.assert_array_equal(written.obs["mine_background"], 1 - share)
    write_gmm(target, target, "mine", UNS, ASSIGNED)
    written = ad.read_h5ad(target)
    assert set(written.obs.columns) == {*original, "mine_comp", "other_comp", "other_background"}
    with h5py.File(target) as file:
        assert "mine_background" not in file["obs"]
        assert set(file["obs"].attrs["column-order"]) == set(written.obs.columns)


def test_a_file_without_uns_and_obsm(tmp_path):
    make_cohort().write_h5ad(tmp_path / "source.h5ad")
    with h5py.File(tmp_path / "source.h5ad", "r+") as file:
        for name in ("uns", "obsm"):
            if name in file:
                del file[name]
    write_gmm(tmp_path / "source.h5ad", tmp_path / "target.h5ad", "gmm_X", UNS, ASSIGNED)
    written = ad.read_h5ad(tmp_path / "target.h5ad")
    assert set(written.uns) == {"gmm_X"}
    assert set(written.obsm) == {"gmm_X_resp"}


def test_a_table_without_columns(tmp_path):
    cohort = make_cohort()
    cohort.obs = cohort.obs[[]]
    cohort.write_h5ad(tmp_path / "source.h5ad")
    write_gmm(tmp_path / "source.h5ad", tmp_path / "target.h5ad", "gmm_X", UNS, ASSIGNED)
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
    write_gmm(tmp_path / "source.h5ad", tmp_path / "target.h5ad", "gmm_X", UNS, ASSIGNED)
    written = ad.read_h5ad(tmp_path / "target.h5ad")
    assert written.obs["condition"].tolist() == ["well"] * 60 + ["sick"] * 60 + ["well"] * 60
    np.testing.assert_array_equal(written.obs["gmm_X_comp"], COMPONENTS)


def test_after_a_failure_there_is_no_target(source, tmp_path):
    class Unwritable:
        pass

    with pytest.raises(Exception, match="Unwritable"):
        write_gmm(source, tmp_path / "out" / "target.h5ad", "gmm_X", UNS | {"bad": Unwritable()}, ASSIGNED)
    assert list((tmp_path / "out").iterdir()) == []
    write_gmm(source, tmp_path / "out" / "target.h5ad", "gmm_X", UNS, ASSIGNED)
    content = (tmp_path / "out" / "target.h5ad").read_bytes()
    with pytest.raises(Exception, match="Unwritable"):
        write_gmm(source, tmp_path / "out" / "target.h5ad", "gmm_X", UNS | {"bad": Unwritable()}, ASSIGNED)
    assert (tmp_path / "out" / "target.h5ad").read_bytes() == content


def test_a_target_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/target\.h5ad"):
        write_gmm(source, tmp_path / "file" / "target.h5ad", "gmm_X", UNS, ASSIGNED)


# merge_models: the stages one after the other, as the pipeline runs them


def stages(folder, source, gmm, sharing="sample_specific", key="gmm_X_pca", use_rep="X_pca", **split_options):
    """Split, fit, select, refit and merge a file; gives back the merged file."""
    options = {"patient_col": "patient", "label_col": None, "use_rep": use_rep, "component_sharing": sharing}
    options |= {"noise": None if gmm.noise is None else gmm.noise.model_dump(exclude={"at"}), "missing": gmm.missing}
    options |= {"train_size": gmm.effective_train_size, "seed": 0} | split_options
    split_file(source, *(folder / name for name in ("patients", "patients.tsv", "positions.npz")), **options)
    cells = sorted((folder / "patients").iterdir())
    models, rows = [], []
    for path in cells:
        part = PatientCells.load(path)
        fitted = {k: fit_candidate(part, k, fit_options(gmm), seed=0) for k in gmm.candidates}
        own = [row for row, _ in fitted.values()]
        k = select_k(own, gmm.k_selection_metric)["k"]
        models.append(folder / "models" / path.name)
        write_fit(models[-1], final_fit(part, k, fitted[k][1], gmm.refit, fit_options(gmm), seed=0))
        rows += own
    write_table(folder / "scores.tsv", SCORE_COLUMNS, rows)
    merge_models(
        source,
        folder / "merged.h5ad",
        cells=cells,
        models=models,
        positions=folder / "positions.npz",
        table=folder / "patients.tsv",
        scores=folder / "scores.tsv",
        source=source,
        patient_col=options["patient_col"],
        gmm=gmm.model_dump(exclude={"verbose"}),
        component_sharing=sharing,
        use_rep=use_rep,
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


def assert_equal(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_equal(value, theirs[key])
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::cohortgmm.errors.ConvergenceWarning")
@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
@pytest.mark.parametrize("refit", ["none", "full"])
def test_the_stages_and_fit_gmm_correct_alike_bit_by_bit(tmp_path, sharing, refit):
    cohort = make_corrected(("b/c", "a"))
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    given = ALL | {"k_comps": [1, 2], "refit": refit, "k_selection_metric": "heldout_nll", "cutoff": 8.0}
    merged = ad.read_h5ad(stages(tmp_path, tmp_path / "cohort.h5ad", read_gmm_options(given), sharing))
    direct = cohortgmm.fit_gmm(
        cohort, patient_col="patient", use_rep="X_pca", component_sharing=sharing, verbose=False, n_jobs=2, **given
    )
    ours, theirs = merged.uns["gmm_X_pca"], direct.uns["gmm_X_pca"]
    assert ours["background"]["amp"].max() > 1e-3
    assert (ours["diagnostics"]["completeness"] < 1).all()
    assert_equal(
        {key: ours[key] for key in ours if key != "provenance"}, {k: theirs[k] for k in theirs if k != "provenance"}
    )
    np.testing.assert_array_equal(merged.obsm["gmm_X_pca_resp"], direct.obsm["gmm_X_pca_resp"])
    for name in ("gmm_X_pca_comp", "gmm_X_pca_background"):
        np.testing.assert_array_equal(merged.obs[name], direct.obs[name])


@pytest.mark.usefixtures("stops_early")
def test_layers_and_covariances_come_through_the_stages(tmp_path):
    """X itself, with gates that name genes, noise in a sparse layer; and covariances that a file holds flattened."""
    cohort = make_corrected(("a", "b"))
    x, noise = np.nan_to_num(cohort.obsm["X_pca"], nan=1.0), cohort.obsm["X_pca_var"]
    flat = (noise[:, :, None] * np.eye(2, dtype=np.float32)).reshape(-1, 4)
    cohort = ad.AnnData(x, obs=cohort.obs, layers={"noise": sparse.csr_matrix(noise)}, obsm={"X_pca": x, "flat": flat})
    cohort.var_names = ["CD3", "CD4"]
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    common = {"k_comps": 2, "max_iter": 20, "n_init": 1}
    for use_rep, kind, gene in ((None, {"layer": "noise"}, "CD3"), ("X_pca", {"obsm": "flat"}, "PC1")):
        given = common | {"noise": kind, "completeness": {"gates": [{"inside": {gene: [-1.0, None]}}]}}
        gmm, key = read_gmm_options(given), f"gmm_{use_rep or 'X'}"
        folder = tmp_path / key
        merged = ad.read_h5ad(stages(folder, tmp_path / "cohort.h5ad", gmm, key=key, use_rep=use_rep))
        direct = cohortgmm.fit_gmm(cohort, patient_col="patient", use_rep=use_rep, verbose=False, **given)
        for name in ("mu", "var", "pi"):
            np.testing.assert_array_equal(merged.uns[key]["model"][name], direct.uns[key]["model"][name])
        assert merged.uns[key]["noise"] == kind
        cohortgmm.fit_gmm(
            cohort, patient_col="patient", use_rep=use_rep, verbose=False, gmm_key=f"all {key}", **common, noise=kind
        )
    # Variances, or the same as covariances: the same mixtures up to rounding. (Not so with the gate, as the noise of
    # unseen cells is drawn along the axes of the covariances.)
    for name in ("mu", "var", "pi"):
        one, other = (cohort.uns[f"all gmm_{rep}"]["model"][name] for rep in ("X", "X_pca"))
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_patients_of_several_columns_get_a_column_of_their_own(tmp_path):
    cohort = make_cohort()
    cohort.obs["day"] = pd.Categorical(np.tile([0, 7], 90))
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    columns = ["patient", "day"]
    merged = ad.read_h5ad(
        stages(tmp_path, tmp_path / "cohort.h5ad", GmmConfig(k_comps=[1]), patient_col=columns, label_col=None)
    )
    ids = merged.obs["gmm_X_pca_patient"].tolist()
    assert ids == [f"{patient}_{day}" for patient, day in zip(cohort.obs["patient"], cohort.obs["day"], strict=True)]
    assert sorted(cohortgmm.read_gmm(merged)) == sorted(set(ids))
    assert cohortgmm.fit_gmm(cohort, patient_col=columns, use_rep="X_pca", k_comps=1, verbose=False) is cohort
    assert cohort.obs["gmm_X_pca_patient"].tolist() == ids
    np.testing.assert_array_equal(merged.obsm["gmm_X_pca_resp"], cohort.obsm["gmm_X_pca_resp"])


def test_names_with_slashes_beside_ours_do_not_matter(tmp_path):
    """Later versions of anndata refuse to write such names; ours have none."""
    cohort = make_cohort()
    cohort.obs["ab"], cohort.obsm["Xb"] = np.arange(180), cohort.obsm["X_pca"]
    cohort.write_h5ad(tmp_path / "c.h5ad")
    with h5py.File(tmp_path / "c.h5ad", "a") as file:  # as anndata wrote it before 0.13
        file.move("obs/ab", "obs/a/b")
        file["obs"].attrs["column-order"] = [
            "a/b" if name == "ab" else name for name in file["obs"].attrs["column-order"]
        ]
        file.move("obsm/Xb", "obsm/X/b")
    with ad.settings.override(disallow_forward_slash_in_h5ad=True):
        write_gmm(tmp_path / "c.h5ad", tmp_path / "m.h5ad", "g", UNS, CellAssignment(np.zeros(180), np.ones((180, 1))))
    with h5py.File(tmp_path / "m.h5ad") as file:
        assert file["obs/a/b"][:].tolist() == list(range(180))
        assert "g" in file["uns"]
