"""What to do when memory runs out: take fewer images at a time, as long as that can help."""

import torch

from comp.runtime.errors import RunError

SMALLEST = 2  # images in a micro-batch: batch norm needs more than one
# What allocators say where they raise a plain RuntimeError: CPU on Linux and on Windows, MPS, cuDNN and cuBLAS.
_SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def refuse_if_hopeless(error: Exception, images: int) -> None:
    """Return where fewer images at a time can help against an error.

    Raises:
        RunError: out of memory with two images already.
        Exception: the error itself where it is about something else.
    """
    if not is_out_of_memory(error):
        raise error
    if images <= SMALLEST:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(
            f"out of memory with {images} images at a time ({reason}); take a smaller model, smaller images "
            "(model.input_size, data.image_size) or a device with more memory"
        ) from None
