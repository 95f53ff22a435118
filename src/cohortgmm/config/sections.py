"""The configuration file with all its sections but ``gmm:``, and the sample sheet."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cohortgmm.columns import overwritten, unit_column
from cohortgmm.config.base import Conflict, Number, Section
from cohortgmm.config.gmm import GmmConfig, default_gmm_key
from cohortgmm.config.problems import validated
from cohortgmm.display import format_path

#: Keys of ``uns`` that the preprocessing writes.
_KEYS_OF_PREPROCESSING = ("cohortgmm_preprocess", "hvg", "log1p", "pca")


class PreprocessConfig(Section):
    """From raw counts to an embedding, with scanpy."""

    enabled: bool = Field(
        True, description="Compute the embedding from raw counts. false: the input already holds `use_rep`."
    )
    counts: str = Field(
        "X",
        description="Where the raw counts are: `X`, `raw` (`adata.raw`, with its own genes) or `layer:NAME`. The input's X "
        "is then kept as the layer `X_input`.",
    )
    symbols: str | None = Field(
        None,
        description="Column of `var` with gene symbols, by which mitochondrial genes are recognised; null: the names of "
        "the genes.",
    )
    min_counts: int = Field(0, ge=0, description="Drop cells with fewer counts.")
    min_genes: int = Field(0, ge=0, description="Drop cells with fewer detected genes.")
    max_mito_percent: Number = Field(
        100.0,
        ge=0,
        le=100,
        description="Drop cells with a larger percentage of counts in mitochondrial genes. These are the genes whose name "
        "begins with `MT-`, `mt-`, `MT.` or `mt:`, also after the name of a genome (`GRCh38_MT-`); it is an error if there "
        "are none. 100: no filter.",
    )
    min_cells_per_gene: int = Field(3, ge=0, description="Drop genes detected in fewer cells.")
    target_sum: Number = Field(1e4, gt=0, description="Counts per cell after normalisation.")
    n_top_genes: int = Field(2000, ge=2, description="Number of highly variable genes used in the PCA.")
    hvg_batch_col: str | None = Field(
        None, description="Column of `obs`: highly variable genes are chosen within each batch and combined."
    )
    n_pcs: int = Field(20, ge=2, description="Number of principal components.")
    harmony_col: str | None = Field(
        None,
        description="Column of `obs` with the batch that Harmony corrects for; the embedding is then `X_pca_harmony`.",
    )

    @field_validator("counts")
    @classmethod
    def _check_counts(cls, value: str) -> str:
        if value not in ("X", "raw") and not re.fullmatch(r"layer:.+", value, re.DOTALL):
            raise ValueError(f"must be X, raw or layer:NAME, got {value!r}")
        return value


class QcConfig(Section):
    """Figures and report."""

    patient_figures: bool = Field(True, description="One figure per patient (one short job each).")
    umap: bool = Field(True, description="Compute a UMAP for the figures unless the input has `obsm['X_umap']`.")
    max_cells: int = Field(
        20000, ge=100, description="Largest number of cells in the UMAP and in a figure; they are drawn at random."
    )


class Config(Section):
    """The whole configuration file."""

    input: str = Field(
        min_length=1,
        description="The cohort: an `.h5ad` file. A relative path refers to the working directory or, if no such file is "
        "there, to the workflow's folder; `~` and variables such as `$HOME` are expanded. It must not be a result of this "
        "run. (The same holds for all files of the configuration.)",
    )
    patient_col: str | list[str] = Field(
        description="Column of `obs` that names the patient (sample, donor) of every cell. With a list of columns, "
        "their texts are joined by `_`: `[patient, timepoint]` gives a mixture for every patient and time point. The "
        "joined texts are in `obs[<gmm_key>_patient]` of the result."
    )
    label_col: str | None = Field(None, description="Column of `obs` with the patient's group, for tables and figures.")
    on_mixed_label: Literal["error", "majority"] = Field(
        "error",
        description="Patients whose cells have several labels: `error` stops the run and names a column that would "
        "separate them; `majority` takes the most frequent label (in a tie, the first in alphabetical order) and records "
        "this. Cells without a label do not count.",
    )
    celltype_col: str | None = Field(
        None, description="Column of `obs` with cell types, for the composition of the components."
    )
    use_rep: str | None = Field(
        "X_pca", description="Key of `obsm` of the matrix that is modelled; null: X itself (without preprocessing)."
    )
    patients: str | None = Field(
        None,
        description="Sample sheet (TSV with a column `patient`): only these patients are modelled, and a dry run shows "
        "their jobs before the cohort has been split. null: all patients of the input.",
    )
    min_cells: int = Field(
        20,
        ge=2,
        description="Smallest number of cells of a patient; cells without any feature do not count. (`cohortgmm.fit_gmm` "
        "has the default 1.)",
    )
    on_small_patient: Literal["error", "drop"] = Field(
        "error",
        description="A patient with fewer cells than `min_cells`, or too few for every k: `error` stops the run, `drop` "
        "leaves the patient out and records this.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,  # the largest that scanpy, Harmony and UMAP accept
        description="Seed of all random numbers; the seed of each fit follows from it, the patient and k. (The argument "
        "`random_state` of `cohortgmm.fit_gmm`.)",
    )
    threads: int = Field(
        1,
        ge=1,
        description="Upper limit of threads per fit. A fit gets more than one only if it is expected to take minutes, for "
        "example with noise per cell or `component_sharing: global`. The result does not depend on it.",
    )
    preprocess: PreprocessConfig = PreprocessConfig()
    gmm: GmmConfig = GmmConfig()
    qc: QcConfig = QcConfig()

    def conflicts(self) -> list[Conflict]:
        found = [(tuple(f"gmm.{key}" for key in keys), f"gmm: {text}") for keys, text in self.gmm.conflicts()]
        if self.gmm.gmm_key is None and "/" in (self.use_rep or ""):
            message = f"use_rep is {self.use_rep!r}, and a key of uns can have no '/': set gmm.gmm_key"
            found.append((("use_rep", "gmm.gmm_key"), message))
        columns = self.patient_col if isinstance(self.patient_col, list) else [self.patient_col]
        if not columns or len(set(columns)) < len(columns):
            found.append(
                (("patient_col",), f"patient_col: needs one column or several different ones, got {columns!r}")
            )
        read = {"patient_col": columns, "label_col": self.label_col, "celltype_col": self.celltype_col}
        noise = self.gmm.noise.obsm if self.gmm.noise else None
        for key, what in overwritten(self.gmm_key, read, {"use_rep": self.use_rep, "gmm.noise.obsm": noise}):
            message = f"{key}: the result overwrites {what}: choose another gmm.gmm_key"
            found.append(((key, "gmm.gmm_key"), message))
        return found + self._preprocess_conflicts()

    def _preprocess_conflicts(self) -> list[Conflict]:
        if not self.preprocess.enabled:
            return []
        found: list[Conflict] = []
        if self.gmm_key in _KEYS_OF_PREPROCESSING:
            message = f"gmm.gmm_key is {self.gmm_key!r}, where the preprocessing keeps its own results: choose another"
            found.append((("gmm.gmm_key", "preprocess.enabled"), message))
        made = "X_pca_harmony" if self.preprocess.harmony_col else "X_pca"
        if self.use_rep != made:
            message = (
                f"use_rep is {self.use_rep!r}, but preprocessing makes {made!r}: set use_rep to that, or "
                "preprocess.enabled to false to use an embedding that is in the input"
            )
            found.append((("use_rep", "preprocess.enabled", "preprocess.harmony_col"), message))
        return found

    @property
    def gmm_key(self) -> str:
        """Key of the result in ``uns``."""
        return self.gmm.gmm_key or default_gmm_key(self.use_rep)

    @property
    def patient_column(self) -> str:
        """Column of ``obs`` of the result that names the patient of every cell."""
        return unit_column(self.patient_col, self.gmm_key)

    @property
    def component_sharing(self) -> str:
        """``gmm.component_sharing``, with ``auto`` resolved for AnnData."""
        return "sample_specific" if self.gmm.component_sharing == "auto" else self.gmm.component_sharing

    def further_columns(self) -> dict[str, str | None]:
        """Columns of ``obs`` that are read besides those of patients and labels, by configuration key."""
        batches = {f"preprocess.{key}": getattr(self.preprocess, key) for key in ("hvg_batch_col", "harmony_col")}
        return {"celltype_col": self.celltype_col, **(batches if self.preprocess.enabled else {})}

    def provenance_json(self) -> str:
        """The keys that the merged file depends on, as JSON: all keys except those for figures and logs."""
        files = {key: format_path(path) for key, path in self.gmm.files.items()}
        named = {key: path and format_path(path) for key, path in (("input", self.input), ("patients", self.patients))}
        plain = self.model_copy(update=named | {"gmm": self.gmm.with_files(files)})
        return plain.model_dump_json(exclude={"qc": True, "gmm": {"verbose"}})

    def split_options(self) -> dict[str, Any]:
        """The options on which splitting the cohort by patient depends."""
        return {
            "patient_col": self.patient_col,
            "label_col": self.label_col,
            "on_mixed_label": self.on_mixed_label,
            "use_rep": self.use_rep,
            "component_sharing": self.component_sharing,
            "train_size": self.gmm.effective_train_size,
            "seed": self.seed,
            "noise": None if self.gmm.noise is None else self.gmm.noise.model_dump(exclude={"at"}),
            "missing": self.gmm.missing,
            "smallest_k": min(self.gmm.candidates),
            "min_cells": self.min_cells,
            "on_small_patient": self.on_small_patient,
        }


class PatientRow(BaseModel):
    """A row of the sample sheet. Further columns are allowed and ignored."""

    model_config = ConfigDict(extra="allow")

    patient: str = Field(description="Patient id as in `patient_col`.", min_length=1)


def read_config(config: Mapping[str, Any], source: str = "config") -> Config:
    """Check a configuration.

    Parameters
    ----------
    config
        The parsed YAML.
    source
        Name of the configuration in messages.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        For all problems at once, one line each, with the dotted path of the key.
    """
    return validated(Config, config, source)
