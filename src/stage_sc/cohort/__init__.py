"""Many slides in files: a task for each file, results in files of their own, and results written back."""

from stage_sc.cohort._results import MODEL, SUMMARY, check_place, list_inputs, result_paths, write_summary
from stage_sc.cohort._run import check_file, embed_file, label_file
from stage_sc.cohort._task import EmbeddedFile, FileTask

__all__ = [
    "MODEL",
    "SUMMARY",
    "EmbeddedFile",
    "FileTask",
    "check_file",
    "check_place",
    "embed_file",
    "label_file",
    "list_inputs",
    "result_paths",
    "write_summary",
]
