"""Stores: many slides on disk, for training on more data than memory holds."""

from stage_sc.data._store import Store, build_store

__all__ = ["Store", "build_store"]
