"""``python -m stage_sc.data STORE FILE [FILE ...]``: prepare slides for training, see `stage_sc.data.build_store`."""

from __future__ import annotations

import argparse
import logging

from stage_sc.data import build_store


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(
        prog="python -m stage_sc.data", description="Prepare slides for training on data that does not fit into memory."
    )
    parser.add_argument("store", help="folder of the store; one that exists is completed")
    parser.add_argument("files", nargs="+", help=".h5ad files, zarr folders of AnnData or SpatialData")
    parser.add_argument("--spatial-key", default="spatial", help="entry of obsm with the coordinates")
    parser.add_argument("--library-key", help="column of obs that names the slide of every cell")
    parser.add_argument("--layer", help="entry of layers with the counts (default: X)")
    parser.add_argument("--table-key", help="table of SpatialData folders (default: the only one)")
    parser.add_argument("--technology", help="name of the platform")
    parser.add_argument("--scale", type=float, help="µm per unit of the coordinates")
    parser.add_argument("--verify", action="store_true", help="check all files of the store afterwards")
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    verify, store = options.pop("verify"), options.pop("store")
    built = build_store(options.pop("files"), store, **options)
    if verify:
        built.verify()
    print(built)


if __name__ == "__main__":
    main()
