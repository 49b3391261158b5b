"""GGML's quantized blocks, repacked into this engine's codes, scales and minimums.

A block holds 32 weights (types ending in _0 and _1) or 256 in 8 groups of 32 (_K). Where a type is
evenly spaced in groups of 32, its codes are taken over; Q6_K, whose groups have 16 weights, is
rounded anew to 8 bits, which leaves an error far below its own.

============== ================================== ===========================================
type           weight                             imported as
============== ================================== ===========================================
Q4_0, Q4_1     ``(q - 8) d``, ``q d + m``         int4 symmetric, asymmetric: exact
Q5_0, Q5_1     ``(q - 16) d``, ``q d + m``        int8 symmetric, asymmetric: exact
Q8_0           ``q d``                            int8 symmetric: exact
Q4_K, Q5_K     ``q (d sc) - (dmin m)``            int4, int8 asymmetric: products to float16
Q6_K           ``(q - 32) (d sc)``, groups of 16  int8 symmetric: rounded
============== ================================== ===========================================

Layouts: ``block_q4_K`` and its kin in GGML's ``ggml-common.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..qtensor import Floats, QuantSpec, QuantTensor, pack
from ..quantizers import round_to_nearest

GROUP = 32
SUPER = 256

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.float16]
Parts = tuple[Bytes, Halves, Halves | None]
"""Codes uint8 [rows, columns], scales and minimums float16 [rows, groups]."""


@dataclass(frozen=True)
class BlockType:
    """A type of block: its weights and bytes, what it is imported as, and how.

    ``parts`` is None where the weights are rounded anew; ``exact`` tells that nothing is lost.
    """

    name: str
    weights: int
    nbytes: int
    spec: QuantSpec
    parts: Callable[[Bytes], Parts] | None
    exact: bool


def import_blocks(
    raw: Bytes, shape: tuple[int, int], kind: BlockType, order: npt.NDArray[np.int64] | None
) -> tuple[QuantTensor, float]:
    """The tensor of ``shape`` in ``raw``, its rows put into ``order``; and the relative error.

    Raises ValueError for scales that are no finite numbers.
    """
    rows, columns = shape
    blocks = raw.reshape(rows, columns // kind.weights, kind.nbytes)
    blocks = blocks if order is None else blocks[order]
    if kind.parts is None:
        floats = _dequantized(blocks, kind)
        if not np.isfinite(floats).all():
            raise ValueError(kind.name)
        tensor = round_to_nearest(floats, kind.spec)
        return tensor, _relative_error(blocks, tensor, kind)
    codes, scales, minimums = kind.parts(blocks)
    if not all(np.isfinite(part).all() for part in (scales, minimums) if part is not None):
        raise ValueError(kind.name)
    tensor = pack(codes, scales, minimums, kind.spec)
    return tensor, 0.0 if kind.exact else _relative_error(blocks, tensor, kind)


def _dequantized(blocks: Bytes, kind: BlockType) -> Floats:
    from gguf.constants import GGMLQuantizationType  # takes a third of a second, and few need it
    from gguf.quants import dequantize

    flat = blocks.reshape(blocks.shape[0], -1)
    floats: Floats = dequantize(flat, GGMLQuantizationType[kind.name])
    return floats


def _relative_error(blocks: Bytes, tensor: QuantTensor, kind: BlockType) -> float:
    reference = _dequantized(blocks, kind)
    size = float(np.linalg.norm(reference))
    return float(np.linalg.norm(reference - tensor.dequantize())) / size if size else 0.0


def _halves(blocks: Bytes, at: int) -> Halves:
    """The float16 at byte ``at`` of each block, [rows, blocks]."""
    part = np.ascontiguousarray(blocks[..., at : at + 2])
    return part.view("<f2")[..., 0].astype(np.float16)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles, then high ones, of the last axis."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _flat(codes: Bytes) -> Bytes:
    return codes.reshape(codes.shape[0], -1)


def _q4_0(blocks: Bytes) -> Parts:
    return _flat(_nibbles(blocks[..., 2:])), _halves(blocks, 0), None


def _q4_1(blocks: Bytes) -> Parts:
    return _flat(_nibbles(blocks[..., 4:])), _halves(blocks, 0), _halves(blocks, 2)


def _fifth_bits(packed: Bytes) -> Bytes:
    """Bit i of a block's 4 bytes is the highest of its weight i: 0 or 16, [rows, blocks, 32]."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return _flat(codes + np.uint8(128 - 16)), _halves(blocks, 0), None


def _q5_1(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _flat(codes), _halves(blocks, 0), _halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Parts:
    return _flat(blocks[..., 2:] ^ np.uint8(128)), _halves(blocks, 0), None


def _group_scales(blocks: Bytes) -> tuple[Halves, Halves]:
    """Scales and minimums of the 8 groups of Q4_K and Q5_K, float16 [rows, groups].

    Bytes 4 to 15 hold 6 bits for each: of groups 0 to 3 in the low bits of bytes 0 to 3 (scales)
    and 4 to 7 (minimums); of groups 4 to 7 in the nibbles of bytes 8 to 11 and the high bits of the
    others.
    """
    low, mid, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minimums = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=-1)
    d = _halves(blocks, 0).astype(np.float32)[..., None]
    dmin = _halves(blocks, 2).astype(np.float32)[..., None]
    rows = len(blocks)
    with np.errstate(over="ignore"):  # what overflows is found and told by the caller
        return (
            (d * scales).astype(np.float16).reshape(rows, -1),
            (-dmin * minimums).astype(np.float16).reshape(rows, -1),
        )


def _k_nibbles(packed: Bytes) -> Bytes:
    """Codes of the 8 groups, [rows, blocks, 256]: 32 bytes hold one group low and one high."""
    pairs = packed.reshape(*packed.shape[:-1], 4, GROUP)
    return _nibbles(pairs).reshape(*packed.shape[:-1], SUPER)


def _q4_k(blocks: Bytes) -> Parts:
    scales, minimums = _group_scales(blocks)
    return _flat(_k_nibbles(blocks[..., 16:])), scales, minimums


def _q5_k(blocks: Bytes) -> Parts:
    scales, minimums = _group_scales(blocks)
    # Bit g of byte j is the highest of weight j of group g.
    high = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    codes = _k_nibbles(blocks[..., 48:]) | (high << np.uint8(4)).reshape(*blocks.shape[:2], SUPER)
    return _flat(codes), scales, minimums


_INT4, _INT4_MINIMUM = QuantSpec(4, GROUP, symmetric=True), QuantSpec(4, GROUP, symmetric=False)
_INT8, _INT8_MINIMUM = QuantSpec(8, GROUP, symmetric=True), QuantSpec(8, GROUP, symmetric=False)

BLOCK_TYPES: dict[int, BlockType] = {
    2: BlockType("Q4_0", GROUP, 18, _INT4, _q4_0, exact=True),
    3: BlockType("Q4_1", GROUP, 20, _INT4_MINIMUM, _q4_1, exact=True),
    6: BlockType("Q5_0", GROUP, 22, _INT8, _q5_0, exact=True),
    7: BlockType("Q5_1", GROUP, 24, _INT8_MINIMUM, _q5_1, exact=True),
    8: BlockType("Q8_0", GROUP, 34, _INT8, _q8_0, exact=True),
    12: BlockType("Q4_K", SUPER, 144, _INT4_MINIMUM, _q4_k, exact=False),
    13: BlockType("Q5_K", SUPER, 176, _INT8_MINIMUM, _q5_k, exact=False),
    14: BlockType("Q6_K", SUPER, 210, _INT8, None, exact=False),
}
"""By GGML's number of the type."""
