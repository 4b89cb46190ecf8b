"""T of four nets written down by hand with numpy, as a check of the references themselves."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from cases_blocks import Dense
from references import Blocks


def _m(weight: Tensor) -> np.ndarray:
    return weight.detach().double().numpy()


def conv_matrix(weight: Tensor, height: int, width: int, stride: int, padding: int) -> np.ndarray:
    """The matrix of a zero-padded 2d convolution: an entry for each output and place under the kernel."""
    w = _m(weight)
    cout, cin, kh, kw = w.shape
    oh, ow = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    matrix = np.zeros((cout, oh, ow, cin, height, width))
    for o, y, x, i, u, v in np.ndindex(cout, oh, ow, cin, kh, kw):
        r, c = y * stride + u - padding, x * stride + v - padding
        if 0 <= r < height and 0 <= c < width:
            matrix[o, y, x, i, r, c] += w[o, i, u, v]
    return matrix.reshape(cout * oh * ow, cin * height * width)


def _chain(*weights: np.ndarray) -> Blocks:
    """ReLU between: A_kj = W_k·½·W_{k−1}·½ ⋯ W_{j+1}·(½ of the source, but for the input)."""
    result: Blocks = {}
    for k in range(1, len(weights) + 1):
        for j in range(k):
            block = weights[j]
            for w in weights[j + 1 : k]:
                block = w @ (0.5 * block)
            result[k, j] = block if j == 0 else block * 0.5
    return result


def mlp(net: nn.Sequential) -> Blocks:
    """``mlp-deep``: four linear layers with ReLU and a linear head."""
    return _chain(*(_m(m.weight) for m in net if isinstance(m, nn.Linear)))


def convolutions(net: nn.Sequential) -> Blocks:
    """``conv2d-no-divide``: 8×8, kernel 4 stride 2 padding 2, then 5×5, kernel 3 stride 2, then linear."""
    return _chain(conv_matrix(net[0].weight, 8, 8, 2, 2), conv_matrix(net[2].weight, 5, 5, 2, 0), _m(net[5].weight))


def residual(net: nn.Module) -> Blocks:
    """``residual-mlp`` with ReLU: y = D(x + B·relu(A·x))."""
    a, b, d = (_m(m.weight) for m in (net.a, net.b, net.d))
    return {(1, 0): a, (2, 0): d @ (np.eye(4) + b @ a / 2), (2, 1): d @ b / 2}


def dense(net: Dense) -> Blocks:
    """``dense-concat``: x grows by relu(P_i·x) three times; y = H·x."""
    p1, p2, p3 = (_m(p.weight) for p in net.parts)
    head = _m(net.head.weight)
    x = np.eye(4)
    sources = {j: np.zeros((4, 3)) for j in (1, 2, 3)}  # how the present x depends on each w
    result: Blocks = {}
    for k, p in enumerate((p1, p2, p3), start=1):
        result[k, 0] = p @ x
        for j in range(1, k):
            result[k, j] = p @ sources[j]
        x = np.vstack([x, 0.5 * result[k, 0]])
        for j in (1, 2, 3):
            new = 0.5 * np.eye(3) if j == k else (0.5 * result[k, j] if j < k else np.zeros((3, 3)))
            sources[j] = np.vstack([sources[j], new])
    result[4, 0] = head @ x
    for j in (1, 2, 3):
        result[4, j] = head @ sources[j]
    return result
