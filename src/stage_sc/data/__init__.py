"""From AnnData and files to what the model takes: slides, stores of many slides, batches of them."""

from stage_sc.data._store import Store, build_store

__all__ = ["Store", "build_store"]
