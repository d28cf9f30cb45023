"""The work: niches found again, cells drawn, slides read, contributions added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from stage_sc._input import Tables
from stage_sc._messages import element_name, naming
from stage_sc.embed import context_map
from stage_sc.explain._attribute import Cells, explain_domains, explain_nodes
from stage_sc.explain._decision import choose_domain, choose_node, draw_cells, find_domain_centres, find_tree
from stage_sc.explain._question import Labelled
from stage_sc.explain._tally import Tally
from stage_sc.nn import Stage
from stage_sc.slides import Slide, read_slides, scratch_folder


class Found(NamedTuple):
    tally: Tally
    reference: str
    same: float
    """Fraction of cells that get the stored label again."""


class Task(NamedTuple):
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

    def nodes(self, stack: ExitStack, reading: dict[str, Any]) -> Found:
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
        slides = [*self._read(stack, reading)]
        tally = self._tally([slide for slide, _ in slides])
        for slide, start in slides:
            chosen, rows = self._choose(slide, start, inside, beside)
            if len(rows):
                explain_nodes(self.model, slide, chosen, stored[rows], rivals, tally)
        return Found(tally, other, same)

    def domains(self, stack: ExitStack, reading: dict[str, Any]) -> Found:
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
        return Found(tally, f"D{other + 1}", same)

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

    def _choose(self, slide: Slide, start: int, inside: np.ndarray, beside: np.ndarray) -> tuple[Cells, np.ndarray]:
        """Cells of a slide that were drawn, and their rows among all cells."""
        rows = start + slide.cells[:]
        of_niche, of_reference = np.isin(rows, inside), np.isin(rows, beside)
        centres = np.flatnonzero(of_niche | of_reference)
        labels = self.labels[rows]
        label = np.where(labels < 0, int(self.labels.max()) + 1, labels)
        return Cells(centres, of_reference[centres].astype(np.intp), label), rows[centres]
