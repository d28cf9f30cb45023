"""Products of constant sparse matrices with trained tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


class Sparse:
    """Constant ``(n, m)`` float32 csr matrix that multiplies dense tensors, with gradient.

    torch has no fast gradient of a csr product; with the transpose it is another csr product.
    """

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.shape = matrix.shape
        self.matrix = matrix
        self.forward = _to_torch(matrix)
        self._backward: Tensor | None = None

    @property
    def backward(self) -> Tensor:
        """The transpose, computed at its first use."""
        if self._backward is None:
            self._backward = _to_torch(sp.csr_matrix(self.matrix.T)).to(self.forward.device)
        return self._backward

    def to(self, device: torch.device | str) -> Sparse:
        """Move to `device`, in place."""
        self.forward = self.forward.to(device)
        self._backward = None if self._backward is None else self._backward.to(device)
        return self

    def __matmul__(self, dense: Tensor) -> Tensor:
        return _Product.apply(dense, self)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, sparse: Sparse) -> Tensor:
        ctx.sparse = sparse
        return sparse.forward @ dense

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.sparse.backward @ grads[0], None


def csr_tensor(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sparse tensor of these parts, without a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # "CSR support is in beta state"
        return torch.sparse_csr_tensor(indptr, indices, values, size=shape)


def _to_torch(matrix: sp.csr_matrix) -> Tensor:
    parts = zip((matrix.indptr, matrix.indices, matrix.data), (np.int64, np.int64, np.float32), strict=True)
    indptr, indices, values = (torch.from_numpy(part.astype(dtype, copy=False)) for part, dtype in parts)
    return csr_tensor(indptr, indices, values, matrix.shape)
