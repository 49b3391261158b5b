"""Float weights to packed ones: three methods, from the quickest to the best."""

from .gptq import InputMoments as InputMoments
from .gptq import quantize_gptq as quantize_gptq
from .rounding import relative_error as relative_error
from .rounding import round_searched as round_searched
from .rounding import round_to_nearest as round_to_nearest
from .rounding import squared_norms as squared_norms
