"""Prototypes of a slide by loops: equations 11 and 12, and paths that always reach from the root level to a leaf."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stage_sc.nn import SlideQueue

LEVELS = (2, 5, 12)
NODES = [slice(0, 2), slice(2, 7), slice(7, 19)]
PARENT = torch.tensor([-1, -1, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6])
M = len(PARENT)


def filled(n_slides: int = 3, length: int = 2, seed: int = 0) -> SlideQueue:
    queue = SlideQueue(n_slides, M, length)
    queue.scores.copy_(torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, queue.scores.shape)))
    return queue


def wanted(queue: SlideQueue, slide: int, rule: str, threshold: float, min_fraction: float) -> list[bool]:
    """The rules node by node, then whole paths: ancestors of the selected, and children where there are none."""
    scores = queue.scores.tolist()
    weight = [[max(batch[k] for batch in one) for k in range(M)] for one in scores]
    selected = [False] * M
    for nodes in NODES:
        level = sorted(list(range(M))[nodes], key=lambda k: -weight[slide][k])  # the best first
        for rank, k in enumerate(level):
            if rule == "slide":
                bar = threshold * weight[slide][level[0]]
            else:
                bar = threshold * max(row[k] for row in weight) - 0.01
            selected[k] = weight[slide][k] > bar or rank < max(1, round(min_fraction * len(level)))
    parent = PARENT.tolist()
    for k in reversed(range(M)):
        if selected[k] and parent[k] >= 0:
            selected[parent[k]] = True
    for k in range(NODES[-1].start):
        children = [child for child in range(M) if parent[child] == k]
        if selected[k] and not any(selected[child] for child in children):
            for child in children:
                selected[child] = True
    return selected


def of(slide: int, n_cells: int) -> torch.Tensor:
    return torch.full((n_cells,), slide)


class TestPush:
    @pytest.mark.parametrize("rank", [1, 3, 20])
    def test_score_of_that_rank(self, rank):
        """Of the last cell where the batch has fewer."""
        queue, scores = SlideQueue(2, M, 2), torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (9, M))).float()
        queue.push(of(1, 9), scores, rank)
        for k in range(M):
            assert float(queue.scores[1, 0, k]) == sorted(scores[:, k].tolist(), reverse=True)[min(rank, 9) - 1]
        assert torch.isinf(queue.scores[0]).all()
        assert torch.isinf(queue.scores[1, 1]).all()

    def test_every_slide_remembers_its_own_cells(self):
        scores = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (30, M)).astype(np.float32))
        slides = torch.from_numpy(np.random.default_rng(1).choice([0, 2, 3], 30))
        together, apart = filled(5), filled(5)
        together.push(slides, scores, 3)
        for slide in (0, 2, 3):
            apart.push(of(slide, int((slides == slide).sum())), scores[slides == slide], 3)
        assert torch.equal(together.scores, apart.scores)
        assert not torch.equal(together.scores, filled(5).scores)
        for slide in (1, 4):
            assert torch.equal(together.scores[slide], filled(5).scores[slide])

    def test_the_oldest_is_forgotten_or_all(self):
        queue = SlideQueue(2, M, 3)
        for value in range(5):
            queue.push(of(0, 4), torch.full((4, M), float(value)), 1)
        assert queue.scores[0, :, 0].tolist() == [4, 3, 2]
        queue.forget()
        assert torch.isinf(queue.scores).all()
        assert queue.active(0, NODES, PARENT).all()


class TestActive:
    @pytest.mark.parametrize("rule", ["slide", "prototype"])
    @pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 0.99, 1.0])
    @pytest.mark.parametrize("min_fraction", [0.01, 0.3, 1.0])
    def test_by_loops(self, rule, threshold, min_fraction):
        for seed in range(5):
            queue = filled(seed=seed)
            for slide in range(3):
                got = queue.active(slide, NODES, PARENT, rule=rule, threshold=threshold, min_fraction=min_fraction)
                assert torch.equal(queue.scores, filled(seed=seed).scores)
                assert got.tolist() == wanted(queue, slide, rule, threshold, min_fraction)

    @pytest.mark.parametrize("rule", ["slide", "prototype"])
    def test_all_of_a_slide_never_seen_and_of_one_slide_under_the_prototype_rule(self, rule):
        queue = filled()
        queue.scores[1] = torch.inf
        assert queue.active(1, NODES, PARENT, rule=rule).all()
        assert filled(1).active(0, NODES, PARENT, rule=rule).all() == (rule == "prototype")

    def test_tree_of_one_level(self):
        queue = SlideQueue(2, 4, 1)
        queue.scores.copy_(torch.tensor([[[0.9, 0.1, 0.5, 0.4]], [[0.1, 0.9, 0.5, 0.4]]]))
        got = queue.active(0, [slice(0, 4)], torch.full((4,), -1), min_fraction=0.25)
        assert got.tolist() == [True, False, True, True]
