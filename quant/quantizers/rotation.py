"""Rotations of the residual stream: the same function with weights of another shape.

Every matrix reads the stream, writes to it, or is the embedding or the output. Turning it by an
orthogonal Q, and each of them with it, changes nothing: ``(x Q)(W Q)^T = x W^T``. RMSNorm
commutes with Q once its gains are folded into the matrices behind it. A random Q spreads the few
columns with large values over all; see QuaRot (arXiv 2404.00456).
"""

from __future__ import annotations

import numpy as np

from ..qtensor import Floats


def random_rotation(size: int, seed: int) -> Floats:
    """An orthogonal matrix float32 [size, size].

    Where ``size`` is a power of two: a Hadamard matrix (Sylvester's) with random signs, all of
    whose entries have the same magnitude. Else the Q of a random matrix.
    """
    random = np.random.default_rng(seed)
    if size & (size - 1) == 0:
        hadamard = np.ones((1, 1))
        while len(hadamard) < size:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        signs = random.choice([-1.0, 1.0], size)
        return np.asarray(hadamard * signs[:, None] / np.sqrt(size), np.float32)
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    # Signs by which every orthogonal matrix is equally likely.
    return np.asarray(q * np.sign(np.diagonal(r)), np.float32)
