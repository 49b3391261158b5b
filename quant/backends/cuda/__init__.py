"""The ``cuda`` backend: kernels for NVIDIA GPUs, beside their twins of :mod:`quant.kernels`.

Nothing here is imported unless a session asks for the backend. Weights keep the packed layout of
:mod:`quant.qtensor`; their bytes are copied to the device as they are. Activations are two planes
of int8 as on the CPU, multiplied by ``dp4a``, so results are those of the CPU but for the order in
which groups are added.
"""
