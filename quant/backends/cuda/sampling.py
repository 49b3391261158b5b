"""The next token chosen where the logits are, so that a step brings back one id.

The twin of :func:`quant.sampling.candidates` and of the draw after it, in one block of threads.
"""

from __future__ import annotations

import math

from numba import cuda, float64, int32, int64

from .jit import SIMULATED, WARP, kernel
from .pointwise import warp_sum

THREADS = 32 if SIMULATED else 1024
CAPACITY = 32 if SIMULATED else 1024
"""Candidates that are sorted on the device; where there are more the host chooses."""

ROUNDS = 64
"""Halvings by which a level is looked for that the ``top_k`` likeliest reach."""

LOWEST = -800.0
"""A logarithm of which the exponential is 0."""

CHOSEN = 1
"""In ``result[1]``: ``result[0]`` is the id. Else the host has to choose."""


@kernel(launch_bounds=THREADS)
def choose(
    logits, seen, seen_count, penalty, temperature, top_k, top_p, min_p, draw, scores, result
):  # fmt: skip
    """One id out of ``logits`` float32 [1, vocab or more]; ``scores`` float64 [vocab] is room.

    ``seen`` int64 are the distinct ids that the repetition penalty is for, ``draw`` the random
    number, 0 to 1. ``result`` int64 [2] is the id, and whether there is one.
    """
    tops = cuda.shared.array(THREADS, float64)
    places = cuda.shared.array(THREADS, int64)
    weights = cuda.shared.array(CAPACITY, float64)
    ids = cuda.shared.array(CAPACITY, int64)
    count = cuda.shared.array(1, int64)
    thread = cuda.threadIdx.x
    vocabulary = scores.shape[0]
    for i in range(thread, vocabulary, THREADS):
        scores[i] = float64(logits[0, i])
    cuda.syncthreads()
    for j in range(thread, seen_count, THREADS):
        value = scores[seen[j]]
        scores[seen[j]] = value / penalty if value > 0 else value * penalty
    cuda.syncthreads()
    # The likeliest, the first of equal ones.
    top = float64(-1e300)
    place = int64(0)
    for i in range(thread, vocabulary, THREADS):
        if scores[i] > top:
            top = scores[i]
            place = i
    tops[thread] = top
    places[thread] = place
    half = THREADS // 2
    while half > 0:
        cuda.syncthreads()
        other = thread + half
        if thread < half and (
            tops[other] > tops[thread]
            or (tops[other] == tops[thread] and places[other] < places[thread])
        ):
            tops[thread] = tops[other]
            places[thread] = places[other]
        half //= 2
    cuda.syncthreads()
    top = tops[0]
    place = places[0]
    cuda.syncthreads()
    if temperature == 0:
        if thread == 0:
            result[0] = place
            result[1] = CHOSEN
        return
    # From here on ``scores`` are logarithms of weights, the largest 0.
    part = float64(0)
    for i in range(thread, vocabulary, THREADS):
        scores[i] = (scores[i] - top) / temperature
        part += math.exp(scores[i])
    tops[thread] = part
    half = THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            tops[thread] += tops[thread + half]
        half //= 2
    cuda.syncthreads()
    total = tops[0]
    limited = 0 < top_k < vocabulary
    low = float64(LOWEST)
    high = float64(0)
    level = math.log(max(min_p, 1e-12))
    if limited:
        level = float64(-16)
    found = int64(0)
    for _ in range(ROUNDS):
        cuda.syncthreads()
        if thread == 0:
            count[0] = 0
        cuda.syncthreads()
        mine = int32(0)
        for i in range(thread, vocabulary, THREADS):
            if scores[i] >= level:
                mine += int32(1)
        mine = warp_sum(mine, WARP)
        if thread % WARP == 0:
            cuda.atomic.add(count, 0, int64(mine))
        cuda.syncthreads()
        found = count[0]
        if not limited or (top_k <= found <= CAPACITY):
            break
        if found > CAPACITY:
            low = level
        else:
            high = level
        # Downwards in strides that double, until there is something on both sides.
        level = max(2 * level, low) if low == LOWEST else (low + high) / 2
    cuda.syncthreads()
    if found > CAPACITY or (limited and found < top_k):
        if thread == 0:
            result[1] = 0
        return
    if thread == 0:
        count[0] = 0
    for i in range(thread, CAPACITY, THREADS):
        weights[i] = 2 * LOWEST
        ids[i] = vocabulary
    cuda.syncthreads()
    for i in range(thread, vocabulary, THREADS):
        if scores[i] >= level:
            at = cuda.atomic.add(count, 0, 1)
            weights[at] = scores[i]
            ids[at] = i
    cuda.syncthreads()
    # Bitonic sort: the likeliest first, of equal ones the smaller id.
    size = 2
    while size <= CAPACITY:
        step = size // 2
        while step > 0:
            for i in range(thread, CAPACITY, THREADS):
                other = i ^ step
                if other > i:
                    later = weights[i] < weights[other] or (
                        weights[i] == weights[other] and ids[i] > ids[other]
                    )
                    if later == ((i & size) == 0):
                        weight = weights[i]
                        weights[i] = weights[other]
                        weights[other] = weight
                        token = ids[i]
                        ids[i] = ids[other]
                        ids[other] = token
            cuda.syncthreads()
            step //= 2
        size *= 2
    for i in range(thread, CAPACITY, THREADS):
        weights[i] = math.exp(weights[i])
    cuda.syncthreads()
    if thread == 0:
        kept = found
        if limited:
            kept = min(kept, top_k)
            total = float64(0)
            for i in range(kept):
                total += weights[i]
        if top_p < 1:
            before = float64(0)
            last = 0
            for i in range(kept):
                if before < top_p * total:
                    last = i + 1
                before += weights[i]
            kept = max(1, last)
        if min_p > 0:
            last = 0
            for i in range(kept):
                if weights[i] >= min_p * weights[0]:
                    last = i + 1
            kept = max(1, last)
        total = float64(0)
        for i in range(kept):
            total += weights[i]
        target = draw * total
        running = float64(0)
        chosen = ids[kept - 1]
        for i in range(kept):
            running += weights[i]
            if running >= target:
                chosen = ids[i]
                break
        result[0] = chosen
        result[1] = CHOSEN
