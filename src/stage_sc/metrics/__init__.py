"""How good a labelling of tissue is: agreement with a reference, continuity in space, composition across slides.

Functions read labels of any kind (categories, strings, integers) from ``adata.obs``, compute one figure and leave
``adata`` as it was. Cells without a label are taken out before anything is computed.

Over-smoothing can win FIDE, PAS and ASW, and random labels have a JSD near 0: read them beside ARI and NMI, and
call good what comes close to the figures of the expert's own labels.
"""

from stage_sc.metrics._agreement import ari, jsd, nmi
from stage_sc.metrics._agreement import compare_labels as compare_labels  # for the other packages
from stage_sc.metrics._evaluate import evaluate
from stage_sc.metrics._space import asw, fide, pas

__all__ = ["ari", "asw", "evaluate", "fide", "jsd", "nmi", "pas"]
