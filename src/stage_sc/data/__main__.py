"""``python -m stage_sc.data STORE FILE [FILE ...]``: prepare slides for training, see `stage_sc.data.build_store`."""

from __future__ import annotations

import argparse
import logging

from stage_sc.data import build_store


def main() -> None:
    """Build a store from the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m stage_sc.data", description="Prepare slides for training.")
    parser.add_argument("store", help="folder of the store; an existing one is completed")
    parser.add_argument("files", nargs="+", help=".h5ad files, zarr folders of AnnData or SpatialData")
    parser.add_argument("--spatial-key", default="spatial", help="entry of obsm with the coordinates")
    parser.add_argument("--library-key", help="column of obs with the slide of every cell")
    parser.add_argument("--layer", help="entry of layers with the counts (default: X)")
    parser.add_argument("--table-key", help="table of SpatialData folders (default: the only one)")
    parser.add_argument("--technology", help="name of the platform")
    parser.add_argument("--scale", type=float, help="µm per unit of the coordinates")
    parser.add_argument("--verify", action="store_true", help="check all files of the store afterwards")
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    verify, path = options.pop("verify"), options.pop("store")
    store = build_store(options.pop("files"), path, **options)
    if verify:
        store.verify()
    print(store)


if __name__ == "__main__":
    main()
