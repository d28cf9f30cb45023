"""Slides: expression and neighbourhoods in memory or on disk, batches and windows of them."""

from stage_sc.slides._batch import make_batch, sample_partners, slide_panel, to_device
from stage_sc.slides._canonical import mix, sort_cells, subsample
from stage_sc.slides._expression import plan_columns, read_expression, scratch_folder
from stage_sc.slides._slide import Matrix, Slide, gene_scaling, read_slides
from stage_sc.slides._stored import MatrixWriter, StoredArray, StoredMatrix, files_of, select_columns
from stage_sc.slides._window import CHUNK, boxes_of, chunk_cells, load_window, n_chunks, sample

__all__ = [
    "CHUNK",
    "Matrix",
    "MatrixWriter",
    "Slide",
    "StoredArray",
    "StoredMatrix",
    "boxes_of",
    "chunk_cells",
    "files_of",
    "gene_scaling",
    "load_window",
    "make_batch",
    "mix",
    "n_chunks",
    "plan_columns",
    "read_expression",
    "read_slides",
    "sample",
    "sample_partners",
    "scratch_folder",
    "select_columns",
    "slide_panel",
    "sort_cells",
    "subsample",
    "to_device",
]
