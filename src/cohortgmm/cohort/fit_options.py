"""The options of a fit, from the section ``gmm:``. Does not import numpy, to keep the start of a run fast."""

from typing import TYPE_CHECKING, Any

from cohortgmm.mixture import effective_settings

if TYPE_CHECKING:  # a fit job does not load pydantic
    from cohortgmm.config import GmmConfig


def fit_settings(gmm: "GmmConfig") -> dict[str, Any]:
    """``max_iter``, ``tol`` and ``n_init``: the given values, else the defaults, which depend on the kind of data."""
    given = {name: getattr(gmm, name) for name in ("max_iter", "tol", "n_init")}
    return effective_settings(gmm.converges_slowly, **given)


def fit_options(gmm: "GmmConfig") -> dict[str, Any]:
    """The options of a single fit; :func:`cohortgmm.cohort.fit_arguments.fit_arguments` turns them into arguments.

    The values are numbers, texts, lists and dicts. In a notebook, functions and the reference may be Python objects.
    """
    names = ("covariance_type", "eps", "singularity_handling", "init", "split_merge", "cutoff", "reference")
    options = {name: getattr(gmm, name) for name in names} | fit_settings(gmm)
    for name in ("background", "frozen"):
        section = getattr(gmm, name)
        options[name] = None if section is None else section.model_dump()
    options["completeness"] = gmm.completeness and {
        "gates": [gate.model_dump() for gate in gmm.completeness.gates],
        "function": gmm.completeness.function,
    }
    return options | {"noise_at": gmm.noise and gmm.noise.at}
