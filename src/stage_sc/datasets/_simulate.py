"""Simulator of slides of mouse cortex with known niches."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stage_sc._checks import check_choice, check_positive, read_names, read_rng
from stage_sc.datasets._cortex import CELL_TYPES, EXPRESSION, NICHES, PANELS
from stage_sc.datasets._slide import Slide, simulate_slide

SMALLEST_SLIDE = 50


def simulate_tissue(
    n_cells: int = 2000,
    *,
    n_slides: int = 1,
    panel: str = "full",
    lesion: str | Sequence[str] = (),
    batch_effect: float = 0.0,
    rotation: float = 20.0,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    r"""Simulate slides of mouse cortex with known niches, all with the same gene panel.

    For examples, tests and benchmarks; no biology may be concluded from it. Cells lie in six bent and tilted layers
    with irregular borders (`"L1"`, `"L2/3"`, `"L4"`, `"L5"`, `"L6"`, `"WM"`), about 12 µm from their nearest neighbour.
    A niche determines the frequencies of 20 cell types, so that it shows in neighbourhoods far better than in single
    cells: K-means of expression smoothed over two hops recovers the layers with an ARI near 0.7, of single cells with
    one near 0.25, as on real sections. Cell types clump at random within a niche; some genes have gradients over depth.

    The count of gene :math:`g` in cell :math:`i` of slide :math:`s` is negative binomial with shape 2 and mean

    .. math:: b_{sg} \, (z_i \, x_{ig} + 0.35 \, \bar{x}_{N(i), g} + 0.08 \, \bar{x}_g),
        \qquad x_{ig} = e_g \, p_{t(i), g} \, f_g(d_i)

    with the efficiency :math:`e` of the probe on its platform, the expression :math:`p` in the cell's type :math:`t`,
    the gradient :math:`f` over depth :math:`d`, the log-normal size :math:`z` of the cell and the batch effect
    :math:`b`. The second term is spill from the five nearest cells (imperfect segmentation), the third background.

    Parameters
    ----------
    n_cells
        Cells per slide, at least 50. Below about 2,100, sections are smaller than the full depth of 1.25 mm.
    n_slides
        Number of slides. Layers differ in thickness and shape between slides; the coordinates of each start at 0.
    panel
        Genes: `"full"` (all 172), `"A"` (115 genes, counted deeply) or `"B"` (86 genes of another platform, shallow, 29
        of them also in `"A"`).
    lesion
        Names of slides (`"slide1"`, `"slide2"`, …) with one more niche, `"lesion"`: a spot of reactive astrocytes and
        activated microglia.
    batch_effect
        Standard deviation of the logarithm of a gene's factor between slides, 0 to 3: 0.3 for replicates of one
        laboratory, 0.6 and more for different ones. All genes of a slide share a factor with half of it.
    rotation
        Largest angle in degrees by which a slide is rotated to either side, 0 to 180.
    rng
        Seed or generator; `None`: different slides on each call. A slide does not depend on the number of slides.

    Returns
    -------
    Data of shape (`n_cells` x `n_slides`, genes) with

    - `X`: raw counts, csr float32,
    - `obsm["spatial"]`: coordinates in µm, float64,
    - `obs["slide"]`, `obs["domain"]` (the true niche), `obs["cell_type"]`: categorical,
    - `obs["depth"]`: float32, from 0 at the pia to 1 at the bottom of the white matter,
    - `var["marker_of"]`: the cell types that express the gene,
    - `uns["simulation"]`: the parameters.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range or no number, or `panel` or a slide of `lesion` does not exist.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500, n_slides=2, lesion="slide2")
    >>> adata.shape
    (1000, 172)
    >>> list(adata.obs["domain"].cat.categories)
    ['L1', 'L2/3', 'L4', 'L5', 'L6', 'WM', 'lesion']
    >>> adata[adata.obs["domain"] == "lesion"].obs["slide"].unique().tolist()
    ['slide2']
    """
    check_positive(n_slides, "n_slides", integer=True)
    check_choice(panel, "panel", PANELS)
    slides, parameters = _simulate(n_cells, [panel] * int(n_slides), lesion, batch_effect, rotation, rng)
    return _to_anndata(slides, panel, parameters)


def simulate_cohort(
    n_cells: int = 2000,
    *,
    panels: Sequence[str] = ("A", "A", "B", "B"),
    lesion: str | Sequence[str] = (),
    batch_effect: float = 0.3,
    rotation: float = 20.0,
    rng: int | np.random.Generator | None = 0,
) -> dict[str, AnnData]:
    """Simulate slides of mouse cortex with different gene panels, each as an object of its own.

    Slides are those of :func:`simulate_tissue` with the same panel and parameters.

    Parameters
    ----------
    n_cells
        Cells per slide.
    panels
        Gene panel of each slide.
    lesion, batch_effect, rotation, rng
        As in :func:`simulate_tissue`.

    Returns
    -------
    Slides by name, `"slide1"`, `"slide2"`, …, in the order of `panels`.

    Raises
    ------
    ValueError, TypeError
        As :func:`simulate_tissue`; or if `panels` is empty or a string.

    Examples
    --------
    >>> import stage_sc as st
    >>> cohort = st.datasets.simulate_cohort(300, panels=("A", "B"), lesion="slide1")
    >>> {name: slide.shape for name, slide in cohort.items()}
    {'slide1': (300, 115), 'slide2': (300, 86)}
    >>> len(cohort["slide1"].var_names.intersection(cohort["slide2"].var_names))
    29
    """
    if isinstance(panels, str | bytes) or not isinstance(panels, Sequence):
        raise TypeError(f"`panels` must name one panel per slide, e.g. ('A', 'B'), got {panels!r}.")
    for panel in panels:
        check_choice(panel, "panels", PANELS)
    slides, parameters = _simulate(n_cells, panels, lesion, batch_effect, rotation, rng)
    return {
        name: _to_anndata({name: slide}, panel, parameters)
        for (name, slide), panel in zip(slides.items(), panels, strict=True)
    }


def _simulate(
    n_cells: int,
    panels: Sequence[str],
    lesion: str | Sequence[str],
    batch_effect: float,
    rotation: float,
    rng: int | np.random.Generator | None,
) -> tuple[dict[str, Slide], dict[str, object]]:
    """Slides by name, each from a generator of its own, and the parameters for ``uns``."""
    names = [f"slide{i}" for i in range(1, len(panels) + 1)]
    lesions = read_names(lesion, "lesion")
    check_positive(n_cells, "n_cells", integer=True)
    if n_cells < SMALLEST_SLIDE:
        raise ValueError(f"`n_cells` must be at least {SMALLEST_SLIDE}, got {n_cells}.")
    for name, value, high in [("batch_effect", batch_effect, 3), ("rotation", rotation, 180)]:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"`{name}` must be a number, got {value!r}.")
        if not 0 <= value <= high:
            raise ValueError(f"`{name}` must be between 0 and {high}, got {value}.")
    if not names:
        raise ValueError("`panels` is empty: name one panel per slide.")
    for name in lesions:
        check_choice(name, "lesion", names)
    generators = read_rng(rng).spawn(len(names))
    slides = {
        name: simulate_slide(int(n_cells), panel, name in lesions, batch_effect, rotation, generator)
        for name, panel, generator in zip(names, panels, generators, strict=True)
    }
    return slides, {
        "n_cells": int(n_cells),
        "lesion": ",".join(lesions),
        "batch_effect": float(batch_effect),
        "rotation": float(rotation),
        "rng": int(rng) if isinstance(rng, Integral) else str(rng),
    }


def _to_anndata(slides: dict[str, Slide], panel: str, parameters: dict[str, object]) -> AnnData:
    """All cells of slides with the same panel."""
    xy, depth, niche, cell_type, counts = map(np.concatenate, zip(*slides.values(), strict=True))
    n = len(xy) // len(slides)
    digits = max(4, len(str(n)))
    obs = pd.DataFrame(
        {
            "slide": pd.Categorical(np.repeat(list(slides), n), categories=list(slides)),
            "domain": pd.Categorical.from_codes(niche, NICHES).remove_unused_categories(),
            "cell_type": pd.Categorical.from_codes(cell_type, CELL_TYPES).remove_unused_categories(),
            "depth": depth.astype(np.float32),
        },
        index=[f"{name}_cell{i:0{digits}d}" for name in slides for i in range(1, n + 1)],
    )
    genes = PANELS[panel].genes
    marker_of = [", ".join(EXPRESSION.index[EXPRESSION[gene] > 0]) for gene in genes]
    return AnnData(
        sparse.csr_matrix(counts, dtype=np.float32),
        obs=obs,
        var=pd.DataFrame({"marker_of": marker_of}, index=genes),
        obsm={"spatial": xy},
        uns={"simulation": {**parameters, "panel": panel}},
    )
