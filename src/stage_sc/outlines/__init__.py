"""Outlines of niches: polygons, files of other programs, shapes of SpatialData, regions read back."""

from stage_sc.outlines._labels import LabelledSlide, category_colors, read_slides
from stage_sc.outlines._measures import outline_slide
from stage_sc.outlines._regions import Regions, find_regions, read_regions
from stage_sc.outlines._shapes import check_element, write_shapes
from stage_sc.outlines._write import cell_groups, read_outlines, to_geojson, to_selections

__all__ = [
    "LabelledSlide",
    "Regions",
    "category_colors",
    "cell_groups",
    "check_element",
    "find_regions",
    "outline_slide",
    "read_outlines",
    "read_regions",
    "read_slides",
    "to_geojson",
    "to_selections",
    "write_shapes",
]
