"""Genes and neighbours that put cells into a niche rather than into another."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stage_sc._checks import check_bool, check_name, check_positive, read_rng
from stage_sc._compute import one_thread
from stage_sc._input import Data, Tables, read_tables
from stage_sc._messages import element_name, naming
from stage_sc.analysis import check_key, read_column, write_stored
from stage_sc.embed import context_map
from stage_sc.explain._attribute import Cells, explain_domains, explain_nodes
from stage_sc.explain._decision import choose_domain, choose_node, draw_cells, find_domain_centres, find_tree
from stage_sc.explain._names import gene_names
from stage_sc.explain._question import Labelled, find_niche, read_labelled
from stage_sc.explain._tally import Tally
from stage_sc.model import resolve_model
from stage_sc.slides import Slide, read_slides, scratch_folder

if TYPE_CHECKING:
    from stage_sc.nn import Stage

logger = logging.getLogger("stage_sc.tl")

TOOL = "explain_niche"
# Largest error of the sum of contributions, as a fraction of the score difference, without a warning.
LARGE = 0.02


def explain_niche(
    data: Data,
    niche: str,
    *,
    reference: str | None = None,
    model: Stage | str | os.PathLike[str] | None = None,
    groupby: str | None = None,
    n_cells: int = 500,
    cell_type_key: str | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> Any:
    r"""DOC"""
    check_name(niche, "niche")
    if reference is not None:
        check_name(reference, "reference")
    check_positive(n_cells, "n_cells", integer=True)
    check_bool(copy, "copy")
    seed = int(read_rng(rng).integers(2**63))
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    network = resolve_model(model)
    labelled = read_labelled(tables, network, groupby)
    column, one = find_niche(labelled, niche, "niche", groupby)
    other = None if reference is None else find_niche(labelled, reference, "reference", groupby)
    _check_pair(labelled, (column, one), other)
    labels = read_column(tables, cell_type_key or column, "cell_type_key" if cell_type_key else "groupby")
    params = labelled.result["params"]
    reading = {
        "spatial_key": spatial_key or str(params.get("spatial_key") or "") or None,
        "library_key": library_key or str(params.get("library_key") or "") or None,
        "layer": layer or str(params.get("layer") or "") or None,
    }
    with one_thread(), ExitStack() as stack:
        task = _Task(network, tables, labelled, one, other and other[1], labels.codes, int(n_cells), seed)
        found = (task.domains if column == labelled.columns.domain else task.nodes)(stack, reading)
    result = _assemble(found, tables, network, labels.names)
    names = labelled.names(column), labelled.names(other[0] if other else column)
    written = {
        "niche": one,
        "reference": found.reference,
        "niche_name": names[0][one],
        "reference_name": names[1][found.reference],
        "groupby": column,
        "cell_type_key": cell_type_key,
        "n_niche": int(found.tally.n_cells[0]),
        "n_reference": int(found.tally.n_cells[1]),
        **result.sums,
        "agreement": found.same,
        "model": network.name,
        "digest": network.digest,
    }
    tables = tables.copy() if copy else tables
    write_stored(tables, key_added, TOOL, result.table, written, neighbors=result.neighbors, hops=result.hops)
    return tables.given if copy else None


class _Found(NamedTuple):
    tally: Tally
    reference: str
    same: float
    """Fraction of cells that get the stored label again."""


class _Task(NamedTuple):
    """All that an explanation is computed from."""

    model: Stage
    tables: Tables
    labelled: Labelled
    niche: str
    reference: str | None
    labels: np.ndarray
    """``(n_cells,)`` position of the label by which neighbours are told apart, -1 without one."""
    n_cells: int
    seed: int

    def nodes(self, stack: ExitStack, reading: dict[str, Any]) -> _Found:
        """Explain a node of the tree."""
        embeddings = self.labelled.embeddings()
        tree, same = find_tree(self.model, self.labelled, embeddings)
        stored, paths = np.concatenate(embeddings), self.labelled.paths()
        how = self.model.config.assignment
        inside = self._draw(stored, (paths == int(self.niche[1:])).any(axis=1), "niche", self.niche)
        used = np.unique(paths)
        other = self.reference or choose_node(tree, self.labelled, self.niche, stored[inside], used, how)
        beside = self._draw(stored, (paths == int(other[1:])).any(axis=1), "reference", other)
        rivals = tree.rivals(int(self.niche[1:]), int(other[1:]), how=how)
        tally = None
        slides = [*self._read(stack, reading)]
        tally = self._tally([slide for slide, _ in slides])
        for slide, start in slides:
            chosen, rows = self._choose(slide, start, inside, beside)
            if len(rows):
                explain_nodes(self.model, slide, chosen, stored[rows], rivals, tally)
        return _Found(tally, other, same)

    def domains(self, stack: ExitStack, reading: dict[str, Any]) -> _Found:
        """Explain a domain."""
        stored, codes = np.concatenate(self.labelled.embeddings()), self.labelled.domains()
        number = int(self.niche[1:]) - 1
        inside = self._draw(stored, codes == number, "niche", self.niche)
        slides = [*self._read(stack, reading)]
        maps = [context_map(self.model, slide) for slide, _ in slides]
        contexts = np.empty((len(codes), self.model.config.dim), np.float32)
        for (slide, start), one in zip(slides, maps, strict=True):
            contexts[start + slide.cells[:]] = one.context.numpy()
        centres, same = find_domain_centres(self.model, self.labelled, np.split(contexts, self._ends()[:-1]))
        used = np.unique(codes[codes >= 0])
        other = choose_domain(centres, number, used) if self.reference is None else int(self.reference[1:]) - 1
        beside = self._draw(stored, codes == other, "reference", f"D{other + 1}")
        tally = self._tally([slide for slide, _ in slides])
        for (slide, start), one in zip(slides, maps, strict=True):
            chosen, rows = self._choose(slide, start, inside, beside)
            if len(rows):
                explain_domains(self.model, slide, chosen, one, centres, (number, other), tally)
        return _Found(tally, f"D{other + 1}", same)

    def _draw(self, stored: np.ndarray, member: np.ndarray, argument: str, name: str) -> np.ndarray:
        rows = np.flatnonzero(member)
        if not len(rows):
            raise ValueError(f"`{argument}`: no cell is in {name!r}.")
        return draw_cells(stored, rows, self.n_cells, self.seed)

    def _ends(self) -> np.ndarray:
        return np.cumsum([part.n_obs for part in self.labelled.parts.values()])

    def _read(self, stack: ExitStack, reading: dict[str, Any]) -> Iterator[tuple[Slide, int]]:
        """All slides, with the position of the first cell of their object among all cells."""
        starts = [0, *self._ends()]
        for (name, part), start in zip(self.tables.by_name.items(), starts, strict=False):
            with naming(element_name("data", name), repr(name)):
                scratch = stack.enter_context(scratch_folder(part, reading["layer"]))
                vocabulary = self.model.vocabulary.keys()
                for slide in read_slides(
                    part, self.model.config, vocabulary=vocabulary, prefix=name, scratch=scratch, **reading
                ):
                    yield slide, start

    def _tally(self, slides: Sequence[Slide]) -> Tally:
        return Tally(sorted({gene for slide in slides for gene in slide.genes}), int(self.labels.max()) + 1)

    def _choose(
        self, slide: Slide, start: int, inside: np.ndarray, beside: np.ndarray
    ) -> tuple[Cells, np.ndarray]:
        """Cells of a slide that were drawn, and their rows among all cells."""
        rows = start + slide.cells[:]
        of_niche, of_reference = np.isin(rows, inside), np.isin(rows, beside)
        centres = np.flatnonzero(of_niche | of_reference)
        labels = self.labels[rows]
        label = np.where(labels < 0, int(self.labels.max()) + 1, labels)
        return Cells(centres, of_reference[centres].astype(np.intp), label), rows[centres]


class _Result(NamedTuple):
    table: pd.DataFrame
    neighbors: pd.DataFrame
    hops: pd.DataFrame
    sums: dict[str, float]


def _assemble(found: _Found, tables: Tables, model: Stage, labels: list[str]) -> _Result:
    """Tables of mean contributions in the niche less those in the reference."""
    tally, number = found.tally, found.tally.n_cells.astype(np.float64)
    by_gene, by_label = (values / number[:, None, None] for values in (tally.by_gene, tally.by_label))
    names = gene_names(tables, model)
    table = pd.DataFrame({"names": [names.get(gene, gene) for gene in tally.genes], **_columns(by_gene)})
    table["niche_mean"], table["reference_mean"] = tally.scaled / number[:, None]
    table = table.iloc[np.lexsort((table["names"], -table["contribution"].abs()))].reset_index(drop=True)
    neighbors = pd.DataFrame({"label": [*labels, "unlabelled"], **_columns(by_label)})
    neighbors["niche_share"], neighbors["reference_share"] = tally.shares / number[:, None]
    neighbors = neighbors[(neighbors["niche_share"] + neighbors["reference_share"] > 0) | (neighbors["niche"] != 0)]
    order = np.lexsort((neighbors["label"], -neighbors["contribution"].abs()))
    by_hop = tally.by_hop / number[:, None]
    last = int(np.flatnonzero(by_hop.any(axis=0)).max(initial=0)) + 1
    hops = pd.DataFrame({"hops": range(last), "contribution": by_hop[0, :last] - by_hop[1, :last]})
    hops["niche"], hops["reference"] = by_hop[:, :last]
    score, baseline, total = tally.score / number, tally.baseline / number, by_gene.sum(axis=(1, 2))
    error = score - baseline - total
    sums = {
        "score_niche": score[0],
        "score_reference": score[1],
        "score_difference": score[0] - score[1],
        "baseline_niche": baseline[0],
        "baseline_reference": baseline[1],
        "baseline_difference": baseline[0] - baseline[1],
        "sum_contributions": total[0] - total[1],
        "error": error[0] - error[1],
    }
    if abs(sums["error"]) > LARGE * abs(sums["score_difference"]):
        logger.warning(
            "Contributions add up to %.4g, and the score difference is %.4g: the score is far from smooth between the "
            "mean cell and these cells. Take contributions as approximate.",
            *(sums["sum_contributions"] + sums["baseline_difference"], sums["score_difference"]),
        )
    return _Result(
        table, neighbors.iloc[order].reset_index(drop=True), hops, {key: float(value) for key, value in sums.items()}
    )


def _columns(values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of contributions, from those in niche and reference of cells themselves and others, ``(2, 2, n)``."""
    niche, reference = values
    difference = niche - reference
    return {
        "contribution": difference.sum(axis=0),
        "own": difference[0],
        "neighbors": difference[1],
        "niche": niche.sum(axis=0),
        "reference": reference.sum(axis=0),
    }


def _check_pair(labelled: Labelled, niche: tuple[str, str], reference: tuple[str, str] | None) -> None:
    """Raise unless no cell can be in both niches."""
    if reference is None:
        return
    domain = labelled.columns.domain
    if (niche[0] == domain) != (reference[0] == domain):
        raise ValueError(f"`reference`: {niche[1]} and {reference[1]} are a niche of the tree and a domain: compare two of a kind.")
    parents = labelled.result["tree"]["parent"].astype(str).to_dict()
    for one, other in ((niche[1], reference[1]), (reference[1], niche[1])):
        while one:
            if one == other:
                raise ValueError(f"`reference`: {reference[1]} and {niche[1]} are the same niche, or one is part of the other.")
            one = parents.get(one, "")
