"""Metrics of labels: agreement with a reference, continuity in space, composition across slides.

Labels in ``adata.obs`` are categories, strings or integers. Cells without a label are left out; no object is changed.
Over-smoothed labels score well in FIDE, PAS and ASW, and random labels have a JSD near 0: read these next to ARI and
NMI, and compare them with the values of an expert's labels.
"""

from stage_sc.metrics._agreement import ari, jsd, nmi
from stage_sc.metrics._agreement import compare_labels as compare_labels  # for the other packages
from stage_sc.metrics._evaluate import evaluate
from stage_sc.metrics._space import asw, fide, pas

__all__ = ["ari", "asw", "evaluate", "fide", "jsd", "nmi", "pas"]
