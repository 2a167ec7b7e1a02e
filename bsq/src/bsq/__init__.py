"""BSQ: exploring bit-level sparsity for mixed-precision neural network quantization (Yang et al., ICLR 2021)."""

__version__ = "0.2.0"
