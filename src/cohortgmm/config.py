"""The configuration: every key with its type, range, default and meaning, in one place.

The schema in ``workflow/schemas``, the table in ``config/README.md`` and the checks of :func:`cohortgmm.fit_gmm` all
come from the models below.
"""

import difflib
import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from cohortgmm.errors import ConfigError

#: Candidates for k where none are given; those a patient is too small for are left out for that patient.
DEFAULT_K = tuple(range(1, 11))


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class GmmConfig(_Section):
    """How the mixtures are fitted: the arguments of `cohortgmm.fit_gmm`."""

    component_sharing: Literal["sample_specific", "global", "auto"] = Field(
        "sample_specific",
        description="`sample_specific`: one independent mixture per patient. `global`: one mixture over all cells, each "
        "patient with its own weights. `auto`: `sample_specific` for AnnData (and so here), `global` for a mapping of "
        "arrays.",
    )
    k_comps: int | list[int] | None = Field(
        None,
        description="Number of components: an integer fixes it (fitted on all cells, no selection); a list gives the "
        "candidates to select from; null is 1 to 10, each patient up to what its cells can carry.",
    )
    k_selection_metric: Literal["aic", "bic", "heldout_nll"] = Field(
        "aic", description="Criterion that chooses k. All three are tabulated whatever is chosen here."
    )
    refit: Literal["none", "full"] = Field(
        "none",
        description="`none`: keep the mixture fitted on the training cells. `full`: fit the chosen k once more on all "
        "cells of the patient.",
    )
    covariance_type: Literal["full", "diag"] = Field("full", description="Shape of the covariances.")
    train_size: Number = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a patient's cells used to fit the candidates; the rest is held out. 1 holds nothing out "
        "and needs `aic` or `bic`.",
    )
    max_iter: int = Field(100, ge=1, description="Largest number of EM iterations of a fit.")
    tol: Number = Field(
        1e-3, ge=0, description="A fit has converged when the mean log-likelihood per cell gains less than this (nats)."
    )
    n_init: int = Field(1, ge=1, description="Starts per fit; the one that ends at the highest likelihood is kept.")
    eps: Number = Field(1e-4, gt=0, description="Floor under the eigenvalues of the covariances.")
    singularity_handling: Literal["guarded", "robust", "strict"] = Field(
        "guarded",
        description="What happens to an eigenvalue below the floor. `guarded`: raised to `eps`. `robust`: raised to 1 % "
        "of the mean variance of the features. `strict`: an error that names patient, k and component.",
    )
    init: Literal["kmeans", "random"] = Field("kmeans", description="How a fit starts.")
    gmm_key: str | None = Field(
        None, min_length=1, pattern="^[^/]+$", description="Key of the result in `uns`; null is `gmm_<use_rep>`."
    )
    verbose: bool = Field(True, description="Write the progress of every fit to its log.")

    @field_validator("k_comps", mode="before")
    @classmethod
    def _check_k(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (str, bytes, Mapping, bool, float)):
            raise ValueError(f"must be an integer, a list of integers or null, got {value!r}")
        try:
            values, several = list(value), True
        except TypeError:
            values, several = [value], False
        if not values:
            raise ValueError("is an empty list: name at least one k, or use null")
        ks = []
        for k in values:
            try:
                number = 0 if isinstance(k, bool) else operator.index(k)
            except TypeError:
                number = 0
            if number < 1:
                raise ValueError(f"must hold integers of at least 1, got {k!r}")
            ks.append(number)
        return sorted(set(ks)) if several else ks[0]

    @field_validator("gmm_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value == ".":
            raise ValueError("must not be '.', which stands for the whole of `uns`")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "GmmConfig":
        if self.train_size == 1 and self.k_selection_metric == "heldout_nll" and self.fixed_k is None:
            raise ValueError(
                "train_size 1 holds no cells out, which k_selection_metric heldout_nll needs: "
                "lower train_size or choose aic or bic"
            )
        return self

    @property
    def fixed_k(self) -> int | None:
        """The number of components if there is nothing to select, else None."""
        if isinstance(self.k_comps, int):
            return self.k_comps
        return self.k_comps[0] if self.k_comps is not None and len(self.k_comps) == 1 else None

    @property
    def candidates(self) -> tuple[int, ...]:
        """All k that are fitted."""
        if self.k_comps is None:
            return DEFAULT_K
        return (self.k_comps,) if isinstance(self.k_comps, int) else tuple(self.k_comps)

    @property
    def effective_train_size(self) -> float:
        """``train_size``, or 1 where k is fixed: with nothing to select, all cells are fitted."""
        return 1.0 if self.fixed_k is not None else self.train_size

    def fit_options(self) -> dict[str, Any]:
        """What a single fit depends on."""
        names = ("covariance_type", "max_iter", "tol", "n_init", "eps", "singularity_handling", "init")
        return {name: getattr(self, name) for name in names}


class PreprocessConfig(_Section):
    """From raw counts to an embedding, with scanpy."""

    enabled: bool = Field(
        True, description="Compute the embedding from raw counts in X. false: the input already holds `use_rep`."
    )
    min_counts: int = Field(0, ge=0, description="Drop cells with fewer counts.")
    min_genes: int = Field(0, ge=0, description="Drop cells with fewer detected genes.")
    max_mito_percent: Number = Field(
        100.0, ge=0, le=100, description="Drop cells with a larger share of counts in mitochondrial genes (`MT-`)."
    )
    min_cells_per_gene: int = Field(3, ge=0, description="Drop genes detected in fewer cells.")
    target_sum: Number = Field(1e4, gt=0, description="Counts per cell after normalisation.")
    n_top_genes: int = Field(2000, ge=2, description="Number of highly variable genes that go into the PCA.")
    hvg_batch_col: str | None = Field(
        None, description="Column of `obs`: highly variable genes are chosen within each batch and combined."
    )
    n_pcs: int = Field(20, ge=2, description="Number of principal components.")
    harmony_col: str | None = Field(
        None,
        description="Column of `obs` with the batch that Harmony corrects for; the embedding is then `X_pca_harmony`.",
    )


class QcConfig(_Section):
    """Figures and report."""

    patient_figures: bool = Field(True, description="One figure per patient (one short job each).")
    umap: bool = Field(True, description="Compute a UMAP for the figures where `obsm['X_umap']` is not there already.")
    max_cells: int = Field(
        20000, ge=100, description="Most cells that go into the UMAP and into a figure (a seeded draw)."
    )


class Config(_Section):
    """The whole configuration file."""

    input: str = Field(
        min_length=1,
        description="The cohort: an `.h5ad` file. A relative path is taken from the working directory or, where nothing "
        "is there, from the workflow's folder.",
    )
    patient_col: str = Field(description="Column of `obs` that names the patient (sample, donor) of every cell.")
    label_col: str | None = Field(None, description="Column of `obs` with the patient's group, for tables and figures.")
    celltype_col: str | None = Field(
        None, description="Column of `obs` with cell types, for the composition of the components."
    )
    use_rep: str | None = Field(
        "X_pca", description="Key of `obsm` that is modelled; null is X itself (without preprocessing)."
    )
    patients: str | None = Field(
        None,
        description="Sample sheet (TSV with a column `patient`): only these patients are modelled, and a dry run shows "
        "every job. null: all patients of the input.",
    )
    min_cells: int = Field(20, ge=2, description="Fewest cells a patient must have.")
    on_small_patient: Literal["error", "drop"] = Field(
        "error",
        description="A patient below `min_cells`, or too small for every k: `error` stops the run, `drop` leaves the "
        "patient out and records it.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random; each fit derives its own from patient and k.")
    preprocess: PreprocessConfig = PreprocessConfig()
    gmm: GmmConfig = GmmConfig()
    qc: QcConfig = QcConfig()

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        if self.preprocess.enabled:
            made = "X_pca_harmony" if self.preprocess.harmony_col else "X_pca"
            if self.use_rep != made:
                raise ValueError(
                    f"use_rep is {self.use_rep!r}, but preprocessing makes {made!r}: set use_rep to that, or "
                    "preprocess.enabled to false to use an embedding that is in the input"
                )
        return self

    @property
    def gmm_key(self) -> str:
        """Key of the result in ``uns``."""
        return self.gmm.gmm_key or default_gmm_key(self.use_rep)

    @property
    def component_sharing(self) -> str:
        """``gmm.component_sharing`` with ``auto`` resolved: the pipeline reads AnnData."""
        return "sample_specific" if self.gmm.component_sharing == "auto" else self.gmm.component_sharing

    def split_options(self) -> dict[str, Any]:
        """What the division into patients depends on."""
        return {
            "patient_col": self.patient_col,
            "label_col": self.label_col,
            "use_rep": self.use_rep,
            "component_sharing": self.component_sharing,
            "train_size": self.gmm.effective_train_size,
            "seed": self.seed,
            "smallest_k": min(self.gmm.candidates),
            "min_cells": self.min_cells,
            "on_small_patient": self.on_small_patient,
        }


class PatientRow(BaseModel):
    """A row of the sample sheet. Further columns are allowed and ignored."""

    model_config = ConfigDict(extra="allow")

    patient: str = Field(description="Patient id as in `patient_col`.", min_length=1)


def default_gmm_key(use_rep: str | None) -> str:
    """Key under which ggml_ot looks for a mixture of this embedding."""
    return f"gmm_{use_rep or 'X'}"


def read_config(config: Mapping[str, Any], source: str = "config") -> Config:
    """Check a configuration.

    Parameters
    ----------
    config
        The parsed YAML.
    source
        What to call it in messages.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        Naming all problems at once, one line each, with the dotted path of the key.
    """
    return _validated(Config, config, source)


def read_gmm_options(options: Mapping[str, Any]) -> GmmConfig:
    """Check the arguments of a fit; as :func:`read_config`."""
    return _validated(GmmConfig, options, "fit_gmm")


def _validated(model: type[_Section], values: Mapping[str, Any], source: str) -> Any:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [_problem(model, item) for item in error.errors()]
    heading = f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise (
        ConfigError("\n  ".join([heading, *problems])) if len(problems) > 1 else ConfigError(f"{source}: {problems[0]}")
    )


def _problem(model: type[BaseModel], item: Any) -> str:
    path, value = item["loc"], item["input"]
    names = [str(part) for part in path]
    dotted = ".".join(names)
    if item["type"] == "extra_forbidden":
        for part in names[:-1]:
            model = model.model_fields[part].annotation
        close = difflib.get_close_matches(names[-1], model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(model.model_fields)}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {value!r}"
