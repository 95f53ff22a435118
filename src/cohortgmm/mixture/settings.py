"""How long and how often EM climbs where nobody says."""

from typing import Any

#: What ``max_iter``, ``tol`` and ``n_init`` are where they are not given: for plain cells, and where part of the cells
#: is hidden by noise, gaps or selection, a background competes with the components, or only some parameters are free.
#: EM's steps are smaller there.
PLAIN = {"max_iter": 100, "tol": 1e-3, "n_init": 1}
HIDDEN = {"max_iter": 2000, "tol": 1e-6, "n_init": 10}


def effective_settings(hidden: bool, **given: float | None) -> dict[str, Any]:
    """``max_iter``, ``tol`` and ``n_init`` of a fit: as given, and where None for plain cells or for hidden ones."""
    defaults = HIDDEN if hidden else PLAIN
    return {name: defaults[name] if value is None else value for name, value in given.items()}
