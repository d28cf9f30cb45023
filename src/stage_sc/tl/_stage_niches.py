"""Label cells with the niches of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from anndata import AnnData

from stage_sc._checks import check_positive
from stage_sc._compute import one_thread, resolve_device
from stage_sc._input import read_tables
from stage_sc._result import check_key, write_labels
from stage_sc.embed import embed_slides
from stage_sc.graph import copy_graph, graph_view
from stage_sc.model import resolve_model
from stage_sc.niches import assign_labels, find_partition
from stage_sc.nn import Stage
from stage_sc.slides import read_slides, scratch_folder


def stage_niches(
    data: AnnData | Sequence[AnnData] | Mapping[str, AnnData],
    *,
    model: Stage | str | os.PathLike[str] | None = None,
    n_domains: int | None = None,
    settle: bool = True,
    spatial_key: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    key_added: str = "stage",
    device: str = "auto",
    copy: bool = False,
) -> AnnData | list[AnnData] | dict[str, AnnData] | None:
    r"""Give every cell its niche at every level of a model's tree.

    Nothing is trained: genes are matched with the model's vocabulary, each cell's hop_means are embedded, the tree
    of prototypes settles on the cells, and every embedding is led through it. A niche has the same name on every slide
    that the same model labels.

    Parameters
    ----------
    data
        Cells with counts, coordinates and the graph of `stage_sc.pp.build_graph`, of one or several slides; or a list
        or a dictionary of these, whose panels may differ.
    model
        A model from `fit`, the path of a checkpoint, or a file on the Hugging Face hub as
        ``hf://OWNER/REPO@COMMIT/FILE.safetensors``, optionally with ``#DIGEST``. ``None``: the model that comes with
        the package.
    n_domains
        Exactly this number of domains over all `data`, written to ``obs["stage_domain"]``; fewer only where fewer cells
        differ. What surrounds the cells is clustered: along the slide's own axes (unless ``whiten=False``), turned onto
        those of the model, which are the same for all panels. Equations are in ``docs/method.md``. Domains are named
        ``D1``, ``D2`` … for this call only: to compare separate calls, use the niches. Of the model, only the gene
        vectors that training began with have a say, so training and fine-tuning do not change domains. Slides of one
        call share domains: label tissues of different kinds in separate calls.
    settle
        Move the prototypes to the cells of `data` before niches are read, as far as there are any (equation below). The
        tree of a corpus cuts other tissue at places that mean little there; settled, its niches follow the tissue and
        agree between slides and panels much better. The slides of one call settle together, so a niche is at its best
        where all slides that are compared are in one call. ``False``: the tree as it is, so that a cell has the same
        niche in any company. To label more slides later by the very same tree, let it settle once,
        ``model = st.tl.fit(data, init="bundled", epochs=0)``, and pass this model with ``settle=False``.
    spatial_key
        Entry of ``obsm`` with the coordinates. ``None``: the one that the graph was built with.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one that the graph was built with.
        Expression is scaled, and embedded cells are whitened, on each slide by itself: keep slides apart, and whole.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``. Neither is changed.
    key_added
        Begins the names of all results.
    device
        ``"cpu"`` or ``"cuda"``; ``"auto"`` takes a GPU where there is one. Reading and the graph take most of the time,
        on the CPU.
    copy
        Return a labelled copy instead of writing into `data`.

    Returns
    -------
    ``None``, or with `copy` what was given, labelled. Written are, for `key_added` ``"stage"``:

    ``obs["stage_l1"]``, ``obs["stage_l2"]`` …
        Categorical. Niche of every level, from the coarsest to the finest, as ``"N12"``.
    ``obs["stage_path"]``
        Categorical. The way from the root to the leaf, as ``"N3>N17>N203"``.
    ``obs["stage_confidence"]``
        float32 in [0, 1]. Geometric mean over the levels of the probability of the cell's node among its siblings,
        :math:`p = \mathrm{softmax}(h^\top c / \tau)` (equations 6 and 7 of the paper).
    ``obs["stage_flag"]``
        Categorical. ``"empty"`` for cells without counts of any gene that the model knows, ``"isolated"`` for cells
        without neighbour, else ``"ok"``.
    ``obs["stage_domain"]``
        Categorical, with `n_domains` only.
    ``obsm["X_stage"]``
        ``(n_cells, dim)`` float32, embeddings of length 1, averaged over four hops (`smoothing` of the model's
        configuration): niches are nearest to these.
    ``uns["stage"]``
        Parameters; name, digest and version of the model; the names of the level columns; the whole tree as a table
        with level, parent and number of cells of every node. For a model that began as another, also ``before``, the
        niche there that most of a node's training cells were in, and ``shared``, their share.

    Raises
    ------
    KeyError
        If there is no graph, or if a key names nothing.
    TypeError
        If `data` or `model` is of another type.
    ValueError
        If this machine has no such `device`, if no gene is in the model's vocabulary, if expression has negative, NaN
        or infinite values, if the coordinates of a stale graph are refused, if ``uns[key_added]`` holds something else,
        or if `model` is no checkpoint, its address has another form or its digest differs. `data` is then as it was.
    FileNotFoundError
        If there is no checkpoint at `model`.
    ImportError, OSError
        If `model` is on the hub and huggingface_hub is not installed, or the file cannot be downloaded.

    See Also
    --------
    fit : Train a model on these slides.
    stage_sc.pl.spatial_domains, stage_sc.pl.niche_tree : Draw the results.

    Notes
    -----
    A tree settles as in fine-tuning. With :math:`m_k^0` a prototype of the model, which counts as much as
    :math:`\kappa` = 4 % of the n cells, and :math:`h_i` the embeddings of the cells whose path has the node k (a sample
    of 20,000 cells at most),

    .. math:: m_k \propto \kappa n \, m_k^0 + \sum_{i : k \in path(i)} h_i,

    until no cell takes another path: spherical K-means in the tree, with its prototypes as prior. Numbers and parents
    of nodes stay, the model is not changed, and the niches in use become fewer, as many as there are cells for.

    A warning names slides that are unlike what the model was trained on: those where the correlation, over pairs of
    genes, between covariance around cells and the cosine of the vectors that training began with is below 0.05. Real
    tissue can be below it, and noise above it where the panel is small.

    The same input gives the same labels, for any order of cells and genes and for rotated or shifted coordinates: cells
    are computed in an order of their own, on one thread. Each is encoded once, layer by layer, over blocks of rows.
    Time and memory grow linearly with the number of cells: on one core about 12 s and 3.5 GB for a million cells with
    50 genes in each, most of the memory for the expression; `settle` adds up to 1 s, `n_domains` 2 to 5 s and 0.8 GB.
    An `X` on disk (backed, or a dask array) is read once, in blocks, into files in the folder for temporary files (8
    bytes per count), and does not stay in memory.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(1000)
    >>> st.pp.build_graph(adata)
    >>> st.tl.stage_niches(adata, n_domains=4)
    >>> adata.obs["stage_domain"].cat.categories.tolist()
    ['D1', 'D2', 'D3', 'D4']
    """
    tables = read_tables(data)
    if n_domains is not None:
        check_positive(n_domains, "n_domains", integer=True)
    for part in tables.by_name.values():
        if part.isbacked and part.is_view and not copy:
            raise ValueError(
                "`data` is a view of a backed object, and results cannot be written to it. Pass `copy=True`, or label "
                "the object that it is a view of."
            )
    check_key(list(tables.by_name.values()), key_added)
    where, network = resolve_device(device), resolve_model(model)
    tables = tables.copy() if copy else tables
    parts = list(tables.by_name.values())
    views = [graph_view(part) for part in parts]  # stale graphs are rebuilt there
    embedded = []
    with one_thread():
        for (prefix, part), view in zip(tables.by_name.items(), views, strict=True):
            with scratch_folder(part, layer) as scratch:
                slides = read_slides(
                    part,
                    network.config,
                    vocabulary=network.vocabulary.keys(),
                    spatial_key=spatial_key,
                    library_key=library_key,
                    layer=layer,
                    prefix=prefix,
                    view=view,
                    scratch=scratch,
                )
                embedded.append(embed_slides(network, slides, where, domains=n_domains is not None))
        partition = find_partition(network, embedded, settle=settle, n_domains=n_domains)
        labels = [assign_labels(network, partition, one, where) for one in embedded]
    digest = network.digest
    for part, view, given in zip(parts, views, labels, strict=True):
        if view.uns["stage_graph"] is not part.uns["stage_graph"]:  # rebuilt
            copy_graph(view, part)
        graph = part.uns["stage_graph"]["params"]
        params = {
            "key_added": key_added,
            "spatial_key": spatial_key or graph["spatial_key"],
            "library_key": library_key or graph["library_key"] or "",
            "layer": layer or "",
            "n_domains": 0 if partition.domains is None else n_domains,
            "settle": settle,
        }
        write_labels(part, given, network, digest, params)
    return tables.given if copy else None
