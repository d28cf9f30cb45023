"""Niches of one file, from reading to pictures: ``python -m stage_sc.demo [INPUT.h5ad] [--out demo]``."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import anndata as ad
import pandas as pd

import stage_sc as st

EXPERT = "domain"


def main(argv: Sequence[str] | None = None) -> None:
    """Label the cells of a file, or of a section of cortex, with niches; write pictures and the labelled data."""
    options = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=SyntaxWarning, module="docrep")  # of squidpy's import
            _run(options)
    except (OSError, KeyError, TypeError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise SystemExit(f"{type(error).__name__}: {message}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stage_sc.demo",
        description="Label the cells of a slide with niches; write pictures and the labelled data.",
    )
    parser.add_argument(
        "input",
        nargs="?",
        type=Path,
        help="file with counts in X and coordinates in obsm (h5ad); if left out, a public section of cortex, or a "
        "simulated one without a network",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: %(default)s)")
    parser.add_argument("--spatial-key", default="spatial", help="key of obsm with the coordinates (%(default)s)")
    parser.add_argument("--library-key", help="column of obs that names the slides, if there are several")
    parser.add_argument("--scale", type=float, help="µm per unit of the coordinates (default: inferred)")
    parser.add_argument("--layer", help="layer with the counts, if they are not in X")
    parser.add_argument("--n-domains", type=int, help=f"number of domains (default: as many as obs[{EXPERT!r}] has)")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.input is None:
        adata, library_key = _section()
        library_key = options.library_key or library_key
    else:
        if not options.input.is_file():
            raise FileNotFoundError(f"there is no file {options.input}")
        print(f"Input: {options.input}")
        adata = ad.read_h5ad(options.input)
        library_key = options.library_key
    with_expert = _has_expert(adata)
    n_domains = options.n_domains or (adata.obs[EXPERT].nunique() if with_expert else None)

    start = perf_counter()
    st.pp.build_graph(adata, spatial_key=options.spatial_key, library_key=library_key, scale=options.scale)
    graph_done = perf_counter()
    st.tl.stage_niches(
        adata, n_domains=n_domains, spatial_key=options.spatial_key, library_key=library_key, layer=options.layer
    )
    niches_done = perf_counter()

    levels = list(adata.uns["stage"]["levels"])
    found = [*levels, *(["stage_domain"] if n_domains else [])]
    genes = st.pp.match_genes(adata)
    slides = "1" if library_key is None else f"{adata.obs[library_key].nunique()} (obs[{library_key!r}])"
    n_niches = [str(adata.obs[key].nunique()) for key in levels]
    print(f"""
slides            {slides}
cells             {adata.n_obs:,}
genes recognised  {genes.n_matched:,} of {genes.n_genes:,}
niches            {", ".join(n_niches)} ({", ".join(levels)})
domains           {n_domains or "none (see --n-domains)"}
seconds           {graph_done - start:.1f} graph, {niches_done - graph_done:.1f} niches""")
    if with_expert:
        print(f"\nAgreement with obs[{EXPERT!r}] (1 perfect; ARI: 0 by chance), all slides together:")
        print(_agreement(adata, found).to_string(float_format="{:.2f}".format))

    options.out.mkdir(parents=True, exist_ok=True)
    shown = [*found, *([EXPERT] if with_expert else [])]
    st.pl.spatial_domains(
        adata, keys=shown, spatial_key=options.spatial_key, save=options.out / "tissue.png", return_fig=True
    )
    st.pl.niche_tree(adata, save=options.out / "tree.png", return_fig=True)
    adata.write_h5ad(options.out / "labelled.h5ad", compression="gzip")
    print(f"""
Written to {options.out}:
  tissue.png      the tissue, coloured by {", ".join(shown)}
  tree.png        the tree of niches, sized by their cells
  labelled.h5ad   the data with its niches""")


def _section() -> tuple[ad.AnnData, str | None]:
    """Take a real section where it can be had, else simulated tissue; the object and the column of its slides."""
    try:
        adata = st.datasets.osmfish_cortex()
    except OSError as error:
        print(f"No real section: {error}\n\nInput: simulated cortex (two slides, no measured data).")
        return st.datasets.simulate_tissue(2000, n_slides=2, lesion="slide2", batch_effect=0.3), "slide"
    print(f"Input: a real section of mouse cortex, measured with osmFISH ({adata.uns['citation']}).")
    return adata, None


def _has_expert(adata: ad.AnnData) -> bool:
    """Find at least two labels to compare with, which are not measured values."""
    labels = adata.obs.get(EXPERT)
    return labels is not None and not pd.api.types.is_numeric_dtype(labels) and labels.nunique() > 1


def _agreement(adata: ad.AnnData, keys: Sequence[str]) -> pd.DataFrame:
    rows = {
        key: {
            "labels": adata.obs[key].nunique(),
            "ARI": st.metrics.ari(adata, key, reference=EXPERT),
            "NMI": st.metrics.nmi(adata, key, reference=EXPERT),
        }
        for key in keys
    }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"labels": int})


if __name__ == "__main__":
    main()
