"""BSQ: exploring bit-level sparsity for mixed-precision neural network quantization (Yang et al., ICLR 2021)."""

from lowbit.functions import lazy_functions

__version__ = "0.2.0"
__getattr__, __dir__ = lazy_functions(
    __name__, "train", "convert", "report", "export", "demo", prune="cifar_prune_STE", finetune="cifar_finetune"
)
