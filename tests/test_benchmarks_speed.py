"""The slides that speed is measured on."""

from __future__ import annotations

import runpy
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import Delaunay, cKDTree

tile = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "speed_workers.py"))["tile"]


@pytest.fixture
def section() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, size=(400, 12)).astype(np.float32))
    return ad.AnnData(counts, obsm={"spatial": rng.uniform([500, 0], [700, 200], size=(400, 2)).astype(np.float32)})


@pytest.mark.parametrize("n_cells", [150, 400, 1000, 3600])
def test_tiles_have_the_sections_density(section, n_cells):
    slide = tile(section, n_cells, 12)
    assert slide.shape == (n_cells, 12)
    points = slide.obsm["spatial"]
    assert len(np.unique(points, axis=0)) == n_cells
    near, distance = (cKDTree(xy).query(xy, 2)[0][:, 1] for xy in (points, section.obsm["spatial"]))
    assert np.median(near) == pytest.approx(np.median(distance), rel=0.15)
    corners = points[Delaunay(points).simplices]
    (ax, ay), (bx, by) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    triangle = np.median(np.abs(ax * by - ay * bx)) / 2
    assert triangle == pytest.approx(200 * 200 / 400 / 2, rel=0.3)


def test_tiles_have_the_sections_counts(section):
    slide = tile(section, 1000, 5)
    expected = section.X[:, :5].toarray()
    assert (slide.X[:400].toarray() == expected).all()
    assert (slide.X[400:800].toarray() == expected).all()
    last = np.flatnonzero(section.obsm["spatial"][:, 1] <= np.sort(section.obsm["spatial"][:, 1])[199])
    assert (slide.X[800:].toarray() == expected[last]).all()
    assert slide.var_names.equals(section.var_names[:5])


def test_tiles_do_not_overlap(section):
    points = tile(section, 1600, 5).obsm["spatial"]
    for number in range(1, 4):
        first, other = points[:400], points[number * 400 : (number + 1) * 400]
        assert ((other.min(axis=0) > first.max(axis=0) - 10) | (other.max(axis=0) < first.min(axis=0) + 10)).any()
