"""Who computes a recorded forward pass: plain NumPy, the processor, a GPU, or two of them."""
