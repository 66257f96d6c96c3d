"""From tensors to the arrays that compiled code takes."""

import numpy as np
import torch
from torch import Tensor


def fits(*tensors: Tensor) -> bool:
    """Whether compiled code takes these: on the CPU, all of float32 or all of float64."""
    kinds = {(t.device.type, t.dtype) for t in tensors}
    return kinds in ({("cpu", torch.float32)}, {("cpu", torch.float64)})


def to_numpy(*tensors: Tensor) -> list[np.ndarray]:
    """Contiguous arrays that share memory with the tensors where these are contiguous."""
    return [t.detach().contiguous().numpy() for t in tensors]
