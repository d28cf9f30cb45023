"""A page that shows niches on the tissue to people without Python."""

from stage_sc.reports._expression import light_markers, open_expression, sum_groups
from stage_sc.reports._report import report

__all__ = ["light_markers", "open_expression", "report", "sum_groups"]
