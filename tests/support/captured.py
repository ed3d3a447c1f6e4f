"""What a CUDA graph may hold, where there is no CUDA: a mode of torch that refuses the rest."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Captured(TorchDispatchMode):
    """Refuses what a stream that is being captured refuses, and what makes the host wait: a value or a shape that
    depends on what a device holds, and copies from one device to another."""

    DEPENDENT = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.equal,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.masked_select,
        torch.ops.aten.nonzero,
        torch.ops.aten.repeat_interleave,
    )

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        there = any(one.device.type == "cuda" for one in args if isinstance(one, torch.Tensor))
        if there and function.overloadpacket in self.DEPENDENT:
            raise AssertionError(f"{function} while a graph is captured")
        out = function(*args, **(kwargs or {}))
        devices = {one.device.type for one in (*args, out) if isinstance(one, torch.Tensor) and one.dim()}
        if len(devices) > 1:
            raise AssertionError(f"{function} between {devices} while a graph is captured")
        return out
