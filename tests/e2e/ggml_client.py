"""What a user of ggml-ot does with a file of ours, and the other way round. Run by ggml-ot's own environment.

Commands are read from standard input, one JSON list of arguments per line, as importing the packages takes long:

["read", "FILE.h5ad", "ARRAYS.npz", "--patient-col", "patient", "--label-col", "condition"]    load and train
["write", "FILE.h5ad", "OUT.h5ad", "--patient-col", "patient", "--label-col", "condition"]     let ggml-ot fit
["run", "PROGRAM.py"]                                                                         run it in its folder

Every command is answered by one line on standard output with a JSON object; what the packages print goes to standard error.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import anndata
import ggml_ot
import numpy as np


def read(args: argparse.Namespace) -> dict:
    """Load the stored mixtures as a dataset, train on them, and tell what the dataset held."""
    adata = anndata.read_h5ad(args.file)
    dataset = ggml_ot.from_anndata(
        adata, patient_col=args.patient_col, label_col=args.label_col, use_rep=args.use_rep, gmm_key=args.gmm_key
    )
    learned, _ = ggml_ot.train_gmm(dataset, n_comps=2, max_iter=args.max_iter, plot_iter=0)
    dataset.map_A = learned  # train_gmm leaves this to its caller; it is what fills uns["W_ggml"]
    # A shared set of components is held once for all patients.
    arrays = {name: stacked(getattr(dataset, name)) for name in ("supports", "covariances", "weights")}
    patients = [str(patient) for patient in np.unique(adata.obs[args.patient_col].to_numpy())]
    np.savez(args.target, **arrays, learned=learned, patients=np.array(patients))
    stored = np.asarray(adata.uns["W_ggml"])
    return {
        "patients": patients,
        "labels": [int(label) for label in dataset.distribution_labels],
        "shared": bool(dataset.identical_supports),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "weight_sums": arrays["weights"].sum(axis=1).tolist(),
        "learned_shape": list(stored.shape),
        "learned_finite": bool(np.isfinite(stored).all() and np.isfinite(learned).all()),
    }


def stacked(values: Sequence) -> np.ndarray:
    """Tensors or arrays, one or a list of them, as one array."""
    return np.stack([np.asarray(value) for value in values])


def write(args: argparse.Namespace) -> dict:
    """Let ggml-ot fit its own mixtures and write the cohort with them."""
    adata = anndata.read_h5ad(args.file)
    fewest = int(adata.obs[args.patient_col].value_counts().loc[lambda counts: counts > 0].min())
    dataset = ggml_ot.from_anndata(
        adata, patient_col=args.patient_col, label_col=args.label_col, use_rep=args.use_rep, n_cells=min(50, fewest)
    )
    ggml_ot.gmm.fit_gmm(
        dataset,
        component_sharing=args.component_sharing,
        k_comps=args.k_comps,
        covariance_type=args.covariance_type,
        refit="full",
        gmm_key=args.gmm_key,
        verbose=False,
    )
    for key in (
        "ggml_params",
        "ggml_preprocessed",
    ):  # of the session, not of the result: tensors, lists of arrays, None
        del adata.uns[key]
    adata.write_h5ad(args.target)
    return {"n_components": [int(k) for k in adata.uns[args.gmm_key]["distribution_n_components"]]}


def run(args: argparse.Namespace) -> dict:
    """Run a program in the folder it is in, with no names but its own; what it prints."""
    program, printed = Path(args.file), io.StringIO()
    with contextlib.chdir(program.parent), contextlib.redirect_stdout(printed):
        exec(compile(program.read_text(encoding="utf-8"), program.name, "exec"), {"__name__": "__main__"})
    return {"printed": printed.getvalue()}


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for command in (read, write, run):
        sub = commands.add_parser(command.__name__, description=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument("file")
        if command is run:
            continue
        sub.add_argument("target")
        sub.add_argument("--patient-col", required=True)
        sub.add_argument("--label-col", required=True)
        sub.add_argument("--use-rep", default="X_pca")
        sub.add_argument("--gmm-key", default="gmm_X_pca")
        if command is read:
            sub.add_argument("--max-iter", type=int, default=3)
        else:
            sub.add_argument("--k-comps", type=int, nargs="+", default=[2, 3])
            sub.add_argument("--component-sharing", choices=["sample_specific", "global"], default="sample_specific")
            sub.add_argument("--covariance-type", choices=["full", "diag"], default="full")
    return parser


if __name__ == "__main__":
    commands = parser()
    for line in sys.stdin:
        arguments = commands.parse_args(json.loads(line))
        with contextlib.redirect_stdout(sys.stderr):
            report = arguments.command(arguments)
        print(json.dumps(report), flush=True)
