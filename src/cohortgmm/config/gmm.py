"""The section ``gmm:`` of the configuration, which is also the arguments of :func:`cohortgmm.fit_gmm`."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from cohortgmm.config.problems import FUNCTION, Conflict, Number, Section
from cohortgmm.display import format_repr
from cohortgmm.errors import ConfigError
from cohortgmm.mixture import effective_settings

if TYPE_CHECKING:
    from cohortgmm.mixture import GaussianMixture

#: Candidates for k where none are given; those a patient is too small for are left out for that patient.
DEFAULT_K = tuple(range(1, 11))


def default_gmm_key(use_rep: str | None) -> str:
    """Key under which ggml_ot looks for a mixture of this embedding."""
    return f"gmm_{use_rep or 'X'}"


class NoiseConfig(Section):
    """Measurement noise of the cells: the mixture is that of the cells behind it."""

    obsm: str | None = Field(
        None,
        description="Key of `obsm`: variances (cells, features), or covariances (cells, features, features), also "
        "flattened to (cells, features · features). An infinite variance is a missing feature; that of a feature that is "
        "NaN in the cells may be anything.",
    )
    layer: str | None = Field(None, description="Key of `layers`: variances of X, where `use_rep` is null.")
    at: str | None = Field(
        None,
        pattern=FUNCTION,
        description="With `completeness`: the noise of a cell anywhere, `file.py:function` or `module:function`, as "
        "variances or covariances of places (m, features). null: the noise of randomly drawn cells.",
    )

    def conflicts(self) -> list[Conflict]:
        if (self.obsm is None) != (self.layer is None):
            return []
        return [(("obsm", "layer"), "needs one of obsm and layer")]


class GateConfig(Section):
    """A condition for a cell to be in the data. It names features (`PC1` in `X_pca`, genes in X)."""

    inside: dict[str, list[Number | None]] | None = Field(
        None, description="Box: lower and upper bound by feature, null for none: `{PC1: [-10, 5], PC2: [0, null]}`."
    )
    outside: dict[str, list[Number | None]] | None = Field(
        None, description="Hole: cells within all these bounds are not in the data."
    )
    half_space: dict[str, Number] | None = Field(
        None, description="Factor by feature: the sum of factor × feature must be `at_least`."
    )
    at_least: Number = Field(0.0, description="See `half_space`.")

    @field_validator("inside", "outside")
    @classmethod
    def _check_bounds(cls, value: dict[str, list[float | None]] | None) -> dict[str, list[float | None]] | None:
        for name, bounds in (value or {}).items():
            if len(bounds) != 2 or bounds == [None, None]:
                raise ValueError(f"{name} needs a lower and an upper bound, one of which may be null, got {bounds!r}")
            if None not in bounds and not bounds[0] < bounds[1]:
                raise ValueError(f"{name} needs a lower bound below the upper one, got {bounds!r}")
        return value

    def conflicts(self) -> list[Conflict]:
        if sum(bool(kind) for kind in (self.inside, self.outside, self.half_space)) == 1:
            return []
        return [(("inside", "outside", "half_space"), "a gate needs one of inside, outside and half_space")]


class CompletenessConfig(Section):
    """Which cells had a chance to be in the data: the mixture is that of all cells, seen or not."""

    gates: list[GateConfig] = Field([], description="Conditions that a cell in the data fulfils, all of them.")
    function: str | None = Field(
        None,
        pattern=FUNCTION,
        description="`file.py:function` or `module:function`: probability that a cell is in the data, in [0, 1], for "
        "places (m, features).",
    )

    def conflicts(self) -> list[Conflict]:
        found = [
            (tuple(f"gates.{i}.{key}" for key in keys), f"gates.{i}: {text}")
            for i, gate in enumerate(self.gates)
            for keys, text in gate.conflicts()
        ]
        return found if self.gates or self.function else [(("gates", "function"), "needs gates or a function")]


class BackgroundConfig(Section):
    """Cells, or what passes for cells, that belong to no component: uniform over a box."""

    lower: Number | list[Number] | None = Field(
        None,
        description="Lower corner, one number for all features or one for each; null: the patient's smallest values.",
    )
    upper: Number | list[Number] | None = Field(None, description="Upper corner; null: the patient's largest values.")
    amp: Number = Field(0.1, ge=0, le=1, description="Share of the cells: where the fit starts, or stays.")
    amp_min: Number = Field(0.0, ge=0, le=1, description="Smallest share.")
    amp_max: Number = Field(1.0, ge=0, le=1, description="Largest share.")
    adjust_amp: bool = Field(True, description="Whether the share is fitted.")

    def conflicts(self) -> list[Conflict]:
        found = []
        if not self.amp_min <= self.amp <= self.amp_max:
            found.append((("amp", "amp_min", "amp_max"), "needs amp_min <= amp <= amp_max"))
        corners = [corner if isinstance(corner, list) else [corner] for corner in (self.lower, self.upper)]
        lower, upper = (corner * max(map(len, corners)) if len(corner) == 1 else corner for corner in corners)
        lengths = [len(corner) for corner in (self.lower, self.upper) if isinstance(corner, list)]
        if len(set(lengths)) > 1:
            found.append(
                (("lower", "upper"), f"needs as many numbers in lower as in upper, got {lengths[0]} and {lengths[1]}")
            )
        elif None not in (self.lower, self.upper) and not all(map(operator.lt, lower, upper)):
            found.append((("lower", "upper"), "needs lower below upper in every feature"))
        return found


Component = Annotated[int, Field(ge=0)]


class FrozenConfig(Section):
    """Components of the reference that keep their parameters, by number (from 0) or `all`."""

    amp: list[Component] | Literal["all"] = Field([], description="Components that keep their weights.")
    mean: list[Component] | Literal["all"] = Field([], description="Components that keep their means.")
    covar: list[Component] | Literal["all"] = Field([], description="Components that keep their covariances.")


class GmmConfig(Section):
    """How the mixtures are fitted: the arguments of `cohortgmm.fit_gmm`."""

    component_sharing: Literal["sample_specific", "global", "auto"] = Field(
        "sample_specific",
        description="`sample_specific`: one independent mixture per patient. `global`: one mixture over all cells, each "
        "patient with its own weights: the mean responsibilities of its cells, or, with `noise`, `missing`, "
        "`completeness` or `background`, those fitted to its cells by EM. `auto`: `sample_specific` for AnnData (and so "
        "here), `global` for a mapping of arrays.",
    )
    k_comps: int | list[int] | None = Field(
        None,
        description="Number of components: an integer fixes it (fitted on all cells, no selection); a list gives the "
        "candidates to select from (a list of one fixes it); null is 1 to 10, each patient up to what its cells can carry "
        "(ten cells a component, or features + 1 where that is more and covariances are full). Of a list, a patient goes "
        "without the candidates for which it has fewer than two training cells a component; a k that is fixed, or the "
        "smallest of a list, is never left out: a patient with fewer cells is too small, see `on_small_patient`.",
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
    max_iter: int | None = Field(
        None,
        ge=1,
        description="Largest number of EM iterations of a fit. null: 100; with `noise`, `missing`, `completeness`, "
        "`background` or `reference` 2000.",
    )
    tol: Number | None = Field(
        None,
        ge=0,
        description="A fit has converged when the mean log-likelihood per cell gains less than this (nats). null: "
        "0.001; with `noise`, `missing`, `completeness`, `background` or `reference` 1e-6, as EM creeps there.",
    )
    n_init: int | None = Field(
        None,
        ge=1,
        description="Starts per fit; the one that ends at the highest likelihood is kept. null: 1; with `noise`, "
        "`missing`, `completeness` or `background` 10.",
    )
    eps: Number = Field(1e-4, gt=0, description="Floor under the eigenvalues of the covariances.")
    singularity_handling: Literal["guarded", "robust", "strict"] = Field(
        "guarded",
        description="What happens to an eigenvalue below the floor. `guarded`: raised to `eps`. `robust`: raised to 1 % "
        "of the mean variance of the features. `strict`: an error that names patient, k and component.",
    )
    init: Literal["kmeans", "kmeans++", "random", "minmax", "none"] = Field(
        "kmeans",
        description="How a fit starts. `kmeans`: clusters of k-means; `kmeans++`: those around its seeds; `random`: "
        "cells as means; `minmax`: means drawn from the box that holds the cells; `none`: `reference` itself, which "
        "is where fits start when it is given.",
    )
    split_merge: int = Field(
        0,
        ge=0,
        description="Rounds of split-and-merge moves after every start: two similar components are merged and another "
        "one is split where that ends at a higher likelihood. Better optima for about seven times the work.",
    )
    noise: NoiseConfig | None = Field(None, description="Measurement noise of the cells; keys below.")
    missing: bool = Field(
        False,
        description="true: NaN is a missing feature, which the likelihood integrates over. false: NaN is an error.",
    )
    completeness: CompletenessConfig | None = Field(
        None, description="Which cells had a chance to be in the data; keys below."
    )
    background: BackgroundConfig | None = Field(
        None, description="A uniform background; keys below (`{}`: as they are)."
    )
    cutoff: Number | None = Field(
        None,
        gt=0,
        description="Leave out components farther from a cell than this many standard deviations; null: none.",
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="A mixture (`.npz`, not one of this run's own results: `python -m cohortgmm keep DIR` copies those of "
        "an earlier run to `DIR/models`) that all fits start from, and whose number of "
        "components they have. Without `frozen`, its means and covariances stay: patients are mapped onto it, and "
        "only their weights (and background) are fitted.",
    )
    frozen: FrozenConfig | None = Field(None, description="Parameters of `reference` that stay; keys below.")
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
            raise ValueError(f"must be an integer, a list of integers or null, got {format_repr(value)}")
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
                raise ValueError(f"must hold integers of at least 1, got {format_repr(k)}")
            ks.append(number)
        return sorted(set(ks)) if several else ks[0]

    @field_validator("gmm_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value == ".":
            raise ValueError("must not be '.', which stands for the whole of `uns`")
        if value is not None and "\0" in value:
            raise ValueError(f"must not have a NUL character, which no .h5ad can hold, got {value!r}")
        return value

    def conflicts(self) -> list[Conflict]:
        found = []
        for name in ("noise", "completeness", "background"):
            section = getattr(self, name)
            for keys, text in section.conflicts() if section is not None else ():
                found.append((tuple(f"{name}.{key}" for key in keys), f"{name}: {text}"))
        if self.train_size == 1 and self.k_selection_metric == "heldout_nll" and self.fixed_k is None:
            message = (
                "train_size 1 holds no cells out, which k_selection_metric heldout_nll needs: lower train_size or "
                "choose aic or bic"
            )
            found.append((("train_size", "k_selection_metric", "k_comps"), message))
        if self.reference is None and (self.frozen is not None or self.init == "none"):
            key = "frozen" if self.frozen is not None else "init"
            found.append((("reference", key), f"{key} is about the mixture in reference, which is not given"))
        if self.reference is not None and self.split_merge:
            found.append((("reference", "split_merge"), "split_merge moves components, which reference is to keep"))
        if self.noise is not None and self.noise.at is not None and self.completeness is None:
            found.append((("noise.at", "completeness"), "noise.at is for completeness, which is not given"))
        return found

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

    @property
    def is_hidden(self) -> bool:
        """Whether part of the cells is hidden by noise, gaps, selection or a background, or parameters are frozen."""
        return self.is_corrected or self.reference is not None

    @property
    def is_corrected(self) -> bool:
        """Whether something is wrong with the cells that a plain mixture would disregard."""
        return self.missing or any((self.noise, self.completeness, self.background))

    @property
    def settings(self) -> dict[str, Any]:
        """``max_iter``, ``tol`` and ``n_init``, as given or as they are where they are not."""
        given = {name: getattr(self, name) for name in ("max_iter", "tol", "n_init")}
        return effective_settings(self.is_hidden, **given)

    def fit_options(self) -> dict[str, Any]:
        """What a single fit depends on; :func:`cohortgmm.cohort.fit_arguments.fit_arguments` makes arguments of it."""
        names = ("covariance_type", "eps", "singularity_handling", "init", "split_merge", "cutoff", "reference")
        sections = ("completeness", "background", "frozen")
        options = {name: getattr(self, name) for name in names} | self.settings
        for name in sections:
            section = getattr(self, name)
            options[name] = None if section is None else section.model_dump()
        return options | {"noise_at": None if self.noise is None else self.noise.at}

    def with_files(self, found: Mapping[str, str]) -> "GmmConfig":
        """The same with the paths of :attr:`files` replaced, by the same keys."""
        update: dict[str, Any] = {}
        for key, path in found.items():
            _, *names = key.split(".")
            if len(names) == 1:
                update[names[0]] = path
                continue
            section = getattr(self, names[0])
            function = getattr(section, names[1]).rpartition(":")[2]
            update[names[0]] = section.model_copy(update={names[1]: f"{path}:{function}"})
        return self.model_copy(update=update)

    def for_reference(self, reference: "GaussianMixture", source: str) -> "GmmConfig":
        """The same with the number of components of the reference.

        Raises
        ------
        ConfigError
            If another number, or another type of covariance, is asked for.
        """
        k = reference.n_components
        if self.k_comps is not None and self.candidates != (k,):
            raise ConfigError(f"{source}: gmm.k_comps: the reference has {k} components: leave k_comps out")
        if self.covariance_type != reference.covariance_type:
            raise ConfigError(
                f"{source}: gmm.covariance_type is {self.covariance_type}, that of the reference "
                f"{reference.covariance_type}"
            )
        return self.model_copy(update={"k_comps": k})

    @property
    def files(self) -> dict[str, str]:
        """Files that fits depend on, by dotted key."""
        named = {"gmm.reference": self.reference}
        for key, name in (
            ("gmm.noise.at", self.noise and self.noise.at),
            ("gmm.completeness.function", self.completeness and self.completeness.function),
        ):
            path = (name or "").rpartition(":")[0]
            named[key] = path if path.endswith(".py") else None
        return {key: path for key, path in named.items() if path}
