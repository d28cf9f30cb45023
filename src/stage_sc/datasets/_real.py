"""Real sections in one line."""

from __future__ import annotations

from anndata import AnnData

from stage_sc._checks import check_choice
from stage_sc.datasets._fetch import load
from stage_sc.datasets._sections import BULBS, MOUSE_BRAIN, OSMFISH, PANCREAS


def osmfish_cortex() -> AnnData:
    """Mouse somatosensory cortex by osmFISH, with the regions of an expert.

    4,839 cells and 33 genes; 11 regions, among them the layers of the cortex. The first call downloads 1 MB from GitHub
    into the cache; see Notes.

    Returns
    -------
    Raw counts in ``X``, (4839, 33), float32 CSR; coordinates in µm in ``obsm["spatial"]``, float32; ``obs["domain"]``,
    regions of the authors; ``obs["cell_type"]``, 31 types of the authors; ``obs["is_duplicate"]``: 476 cells repeat the
    counts and the place of another cell in the source. Platform, species, licence, citation and others in ``uns``.

    Raises
    ------
    OSError
        If the section is neither in the folder of copies nor in the cache, and cannot be downloaded, or is broken. The
        message names the address and the way out.

    Notes
    -----
    Licence: MIT (repository ``vitessce/vitessce-data``, at a pinned revision). Citation: S. Codeluppi et al., Spatial
    organization of the somatosensory cortex revealed by osmFISH. Nature Methods 15, 932-935 (2018).

    All sections are looked up in this order: a folder of copies, which the environment variable ``STAGE_SC_DATA`` names
    (files ``osmfish_cortex/SScortex.h5ad``, ``xenium_mouse_brain_subset/FF_coronal_CTX_HP.h5ad``,
    ``xenium_pancreas/human_Pancreas_FFPE.h5ad``, ``mob_st/Rep11.h5ad``, ``mob_st/Rep12.h5ad``, also in subfolders
    ``dev`` and ``corpus``); the cache, in the folder of the operating system for caches or in ``STAGE_SC_CACHE``; the
    network. Downloads are compared with known SHA-256 digests.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.osmfish_cortex()
    >>> adata.shape, adata.obs["domain"].nunique()
    ((4839, 33), 11)
    """
    return load(OSMFISH)


def xenium_mouse_brain() -> AnnData:
    """Mouse cortex and hippocampus by Xenium, coronal, fresh frozen.

    36,602 cells and 248 genes, without labels. The first call downloads about 13 MB from 10x Genomics.

    Returns
    -------
    Raw counts in ``X``, (36602, 248), float32 CSR; coordinates in µm in ``obsm["spatial"]``, float32. Platform,
    species, licence, citation and others in ``uns``.

    Raises
    ------
    OSError
        As of :func:`~stage_sc.datasets.osmfish_cortex`, whose notes describe copies and cache.

    Notes
    -----
    Licence: CC BY 4.0. Citation: 10x Genomics, Fresh Frozen Mouse Brain for Xenium Explorer Demo (2023). The publisher
    gives no digests of the files, so the digest of names and counts is compared.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.xenium_mouse_brain()
    >>> adata.shape
    (36602, 248)
    """
    return load(MOUSE_BRAIN)


def xenium_pancreas() -> AnnData:
    """Human pancreas with a tumour by Xenium, a whole slide.

    140,702 cells and 506 genes, shallow: the median cell has 31 counts. The first call downloads an archive of about
    220 MB from GitHub and converts it in about half a minute.

    Returns
    -------
    Raw counts in ``X``, (140702, 506), float32 CSR; coordinates in µm in ``obsm["spatial"]``, float32, the centroids of
    the outlines of cells; ``obs["graphclust"]``, clusters of the analysis by 10x Genomics, missing for cells without.
    Platform, species, licence, citation and others in ``uns``.

    Raises
    ------
    OSError
        As of :func:`~stage_sc.datasets.osmfish_cortex`, whose notes describe copies and cache.

    Notes
    -----
    Licence: CC BY 4.0 of the data; the files of the repository ``broadinstitute/celldega_Xenium_human_Pancreas_FFPE``,
    read at a pinned revision, are under an academic licence of the Broad Institute. Citation: 10x Genomics, Xenium V1
    human Pancreas FFPE (2024). GitHub makes archives anew, so the digest of names and counts is compared instead of
    that of the archive.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.xenium_pancreas()
    >>> adata.shape
    (140702, 506)
    """
    adata = load(PANCREAS)
    clusters = adata.obs["graphclust"].astype("category")
    adata.obs["graphclust"] = clusters.cat.remove_categories(
        [name for name in clusters.cat.categories if name == "<NA>"]
    )
    return adata


def olfactory_bulb(sample: str = "Rep11") -> AnnData:
    """Mouse olfactory bulb by Spatial Transcriptomics: one of two arrays of spots, with layers of an expert.

    262 or 282 spots with about 16,000 genes, and 5 layers. The first call downloads 1 MB or 9 MB from GitHub.

    Parameters
    ----------
    sample
        Array: ``"Rep11"`` or ``"Rep12"``, two sections of one tissue.

    Returns
    -------
    Raw counts in ``X``, (262, 16218) or (282, 16034), float32 CSR; coordinates in µm in ``obsm["spatial"]``, float64,
    spots about 200 µm apart; ``obs["domain"]``, layers, of all but 3 spots of Rep12. Gene names are those that R makes
    of symbols: ``X2010300C02Rik``, ``H2.K1``. Platform, species, licence, citation and others in ``uns``.

    Raises
    ------
    OSError
        As of :func:`~stage_sc.datasets.osmfish_cortex`, whose notes describe copies and cache.
    TypeError, ValueError
        If `sample` is not one of the two.

    Notes
    -----
    Licence: MIT of the counts (repositories ``sales-lab/spatialDE`` and ``Teichlab/SpatialDE``), BSD-3 of the layers
    (``tare/Splotch``), all at pinned revisions. Citation: P. L. Ståhl et al., Visualization and analysis of gene
    expression in tissue sections by spatial transcriptomics. Science 353, 78-82 (2016); layers: T. Äijö et al.,
    Splotch, bioRxiv 757096 (2019).

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.olfactory_bulb()
    >>> adata.shape, adata.obs["domain"].nunique()
    ((262, 16218), 5)
    """
    check_choice(sample, "sample", BULBS)
    return load(BULBS[sample])
