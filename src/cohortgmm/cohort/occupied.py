"""Checks that the places of a result are free, or hold mixtures that may be replaced."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from cohortgmm.columns import columns_of
from cohortgmm.errors import DataError

#: Entries that both ggml_ot and cohortgmm write with their mixtures.
_OF_MIXTURES = ("component_sharing", "covariance_type", "model", "weight_inference")
_OF_MODELS = ("mu", "var", "pi")


def has_mixtures(entry: Any) -> bool:
    """Whether an entry of ``uns``, in memory or in a file, holds mixtures in ggml_ot's layout."""
    if not hasattr(entry, "keys") or not all(name in entry for name in _OF_MIXTURES):
        return False
    model = entry["model"]
    return hasattr(model, "keys") and all(name in model for name in _OF_MODELS)


def check_places(
    gmm_key: str,
    uns: Mapping[str, Any],
    columns: Container[str],
    obsm: Container[str],
    where: str = "the data",
    *,
    patient_col: str | Sequence[str] = "",
) -> None:
    """Refuse a key of ``uns`` under which a result would replace anything but an earlier result.

    Parameters
    ----------
    gmm_key
        Key in ``uns``.
    uns
        Entries of ``uns`` by key, or the group ``uns`` of an HDF5 file.
    columns, obsm
        Columns of ``obs``, and keys of ``obsm``.
    where
        Name of the data in messages.
    patient_col
        As in the configuration.

    Raises
    ------
    DataError
        If ``uns[gmm_key]`` exists and does not hold mixtures in the layout of cohortgmm and ggml_ot; or if it does not
        exist, but columns of ``obs`` or an entry of ``obsm`` have the names that the result would use.
    """
    way_out = "set another gmm_key (in the configuration gmm.gmm_key), or rename it"
    if gmm_key in uns:
        if not has_mixtures(uns[gmm_key]):
            raise DataError(
                f"gmm_key {gmm_key!r}: {where} has an entry uns[{gmm_key!r}] that holds no mixtures, and the result "
                f"would replace it: {way_out}"
            )
        return
    taken = [f"obs[{name!r}]" for name in columns_of(gmm_key, patient_col) if name in columns]
    taken += [f"obsm[{name!r}]" for name in (f"{gmm_key}_resp",) if name in obsm]
    if taken:
        raise DataError(
            f"gmm_key {gmm_key!r}: {where} has {' and '.join(taken)} without mixtures in uns[{gmm_key!r}], and the "
            f"result would replace {'it' if len(taken) == 1 else 'them'}: {way_out}"
        )


def check_file(file: Any, gmm_key: str, patient_col: str | Sequence[str] = "") -> None:
    """Like :func:`check_places`, for an open ``.h5ad`` (an ``h5py.File``); only names are read."""
    columns = file["obs"].attrs.get("column-order", ()) if hasattr(file["obs"], "keys") else ()
    columns = {name.decode() if isinstance(name, bytes) else str(name) for name in columns}
    uns, obsm = file.get("uns", {}), file.get("obsm", {})
    check_places(gmm_key, uns, columns, obsm, str(file.filename), patient_col=patient_col)
