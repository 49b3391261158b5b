"""Finding grids and codes for groups of weights. The NumPy twins are in the tests.

A group's grid is ``code * scale + minimum`` (asymmetric) or ``(code - zero) * scale`` (symmetric);
scales and minimums are float32 here that float16 holds exactly.
"""

# Types and layouts are in the docstrings; Numba compiles these from their bytecode.

import math

import numpy as np

from .jit import entry, kernel


@kernel
def half(x):
    """The float16 nearest to ``x``, as float32; ``x`` must be inside float16's range."""
    if abs(x) < np.float32(2.0**-14):  # where float16 is evenly spaced
        return np.float32(np.rint(x * np.float32(2.0**24)) * np.float32(2.0**-24))
    # Dekker's splitting: what is left after the product's rounding are the upper 11 bits.
    upper = x * np.float32(8193.0)
    return upper - (upper - x)


@kernel
def code_of(weight, inverse, minimum, zero, levels):
    """The code nearest to a weight, 0 to ``levels``; ``inverse`` is 1 / scale, or 0."""
    whole = np.rint((weight - minimum) * inverse + zero)
    return np.float32(min(max(whole, np.float32(0)), levels))


@kernel
def inverse_of(scale):
    """1 / scale, and 0 for a group whose weights are all the same."""
    return np.float32(1) / scale if scale != np.float32(0) else np.float32(0)


@entry
def round_grids(weights, group_size, levels, symmetric, scales, minimums):
    """Grids that span each group: ``scales`` and ``minimums`` float32 [rows, groups] are written.

    ``weights`` is float32 [rows, columns]. Returns whether all weights are finite.
    """
    rows, columns = weights.shape
    finite = True
    for row in range(rows):
        for g in range(columns // group_size):
            low = high = weights[row, g * group_size]
            for k in range(g * group_size, (g + 1) * group_size):
                w = weights[row, k]
                finite = finite and math.isfinite(w)
                low = min(low, w)
                high = max(high, w)
            if symmetric:
                extreme = high if high > -low else low
                # The first of two extremes, as the twin takes it.
                if high == -low:
                    for k in range(g * group_size, (g + 1) * group_size):
                        if abs(weights[row, k]) == high:
                            extreme = weights[row, k]
                            break
                divisor = np.float32(-8.0) if levels == 15 else np.float32(127.0)
                scales[row, g] = half(extreme / divisor)
            else:
                minimums[row, g] = half(low)
                scales[row, g] = half((high - minimums[row, g]) / np.float32(levels))
    return finite


@kernel
def _grid_error(weights, energies, row, begin, end, scale, minimum, zero, levels):
    inverse = inverse_of(scale)
    error = np.float32(0)
    for k in range(begin, end):
        code = code_of(weights[row, k], inverse, minimum, zero, levels)
        left = weights[row, k] - ((code - zero) * scale + minimum)
        error += left * left * energies[k]
    return error


@kernel
def _refit(weights, energies, row, begin, end, scale, minimum, zero, levels):
    """Scale and minimum that fit the codes of a grid best, by weighted least squares."""
    inverse = inverse_of(scale)
    count = codes = squares = values = products = np.float32(0)
    for k in range(begin, end):
        w, energy = weights[row, k], energies[k]
        code = code_of(w, inverse, minimum, zero, levels) - zero
        count += energy
        codes += energy * code
        squares += energy * code * code
        values += energy * w
        products += energy * code * w
    if zero != 0:
        return (half(products / squares) if squares > 0 else scale), minimum
    spread = count * squares - codes * codes
    if spread <= np.float32(1e-12) * count * squares:
        return scale, minimum
    fitted = (count * products - codes * values) / spread
    return half(fitted), half((values - fitted * codes) / count)


@entry
def search_grids(weights, energies, group_size, levels, zero, steps, scales, minimums):
    """Improve grids: shrink each in ``steps`` steps, refit it to its codes twice, keep the best.

    ``energies`` float32 [columns] weigh the squared errors. ``scales`` and ``minimums`` float32
    [rows, groups] hold the grids to begin from and take the better ones; an error never grows.
    """
    rows, columns = weights.shape
    for row in range(rows):
        for g in range(columns // group_size):
            begin, end = g * group_size, (g + 1) * group_size
            first, base = scales[row, g], minimums[row, g]
            best = _grid_error(weights, energies, row, begin, end, first, base, zero, levels)
            middle = base + first * np.float32(levels) * np.float32(0.5)
            for step in range(steps):
                share = np.float32(1.0) - np.float32(0.5) * np.float32(step) / np.float32(steps)
                scale = half(first * share)
                minimum = base
                if zero == 0:
                    minimum = half(middle - (middle - base) * share)
                for _ in range(2):
                    scale, minimum = _refit(
                        weights, energies, row, begin, end, scale, minimum, zero, levels
                    )
                    error = _grid_error(
                        weights, energies, row, begin, end, scale, minimum, zero, levels
                    )
                    if error < best:
                        best = error
                        scales[row, g] = scale
                        minimums[row, g] = minimum


@entry
def encode(weights, group_size, levels, zero, scales, minimums, codes, squares):
    """Codes uint8 [rows, columns] nearest to the weights, on the grids given.

    ``squares`` float64 [rows, 2] get each row's squared error and squared weights.
    """
    rows, columns = weights.shape
    for row in range(rows):
        error = size = 0.0
        for g in range(columns // group_size):
            scale, minimum = scales[row, g], minimums[row, g]
            inverse = inverse_of(scale)
            lost = kept = np.float32(0)
            for k in range(g * group_size, (g + 1) * group_size):
                w = weights[row, k]
                code = code_of(w, inverse, minimum, zero, levels)
                codes[row, k] = np.uint8(code)
                left = w - ((code - zero) * scale + minimum)
                lost += left * left
                kept += w * w
            error += np.float64(lost)
            size += np.float64(kept)
        squares[row, 0] = error
        squares[row, 1] = size


@entry
def round_mended(
    targets, errors, first, last, groups, levels, zero, scales, minimums, factor, codes
):
    """GPTQ within columns ``first`` to ``last``, backwards: round one, and mend those before it.

    ``targets`` float32 [rows, last - first] is where the columns are to be rounded, mended by all
    columns from ``last`` on already; ``errors`` float32 [rows, columns] has their weights and gets
    what rounding takes from them. ``groups`` int64 [columns] says which grid a column is on;
    ``factor`` float32 [columns, columns] is the ``mending_factor``. Codes uint8 [rows, columns].
    """
    for row in range(targets.shape[0]):
        for j in range(last - 1, first - 1, -1):
            g = groups[j]
            scale, minimum = scales[row, g], minimums[row, g]
            code = code_of(targets[row, j - first], inverse_of(scale), minimum, zero, levels)
            codes[row, j] = np.uint8(code)
            error = errors[row, j] - ((code - zero) * scale + minimum)
            errors[row, j] = error
            for k in range(first, j):
                targets[row, k - first] += error * factor[j, k]
