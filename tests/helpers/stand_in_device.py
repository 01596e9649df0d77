# SPDX-License-Identifier: MIT
"""A device "stand_in" whose tensors hold CPU tensors, to find code that mixes devices.

As on a GPU, an operator on tensors of this device and of the CPU raises, and so does `numpy()`.
torch's interface for devices written in Python is experimental: this helper knows that of 2.13.
"""

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "stand_in"
HERE = torch.device("cpu")
# operators that copy between devices, or take indices of the CPU, as on a GPU
MIXING = ("copy_", "_to_copy", "_copy_from", "_foreach_copy_", "index", "index_put", "index_put_")
_libraries = []  # registrations last as long as these


class StandIn(torch.Tensor):
    """A tensor of the device; `inner` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device=f"{NAME}:0", **layout
        )
        made.inner = inner
        return made

    def __init__(self, inner):
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})

    @property
    def data(self):
        return StandIn(self.inner.detach())

    @data.setter
    def data(self, new):
        torch.Tensor.data.__set__(self, new)
        self.inner = new.inner

    def data_ptr(self):
        return self.inner.data_ptr()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"a tensor on {self.device} has no numpy(): call cpu() first")

    def __repr__(self):
        return f"StandIn({self.inner})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            made = StandIn(self.inner.detach().clone()).requires_grad_(self.requires_grad)
            made._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = made
        return memo[id(self)]

    def __reduce_ex__(self, protocol):  # checkpoints are loaded to the CPU
        return self.inner.detach().__reduce_ex__(protocol)


def call(func, args, kwargs):
    """Run an operator on the inner tensors; wrap what it returns, unless that is for the CPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    wrapped = [tensor for tensor in tensors if isinstance(tensor, StandIn)]
    name = func._schema.name.removeprefix("aten::")
    others = [tensor for tensor in tensors if not isinstance(tensor, StandIn) and tensor.dim()]
    if wrapped and others and name not in MIXING:
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"all tensors of {func} must be on one device, got {found}")
    if name == "copy_":
        stays = isinstance(args[0], StandIn)
    elif kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == NAME
    else:
        stays = bool(wrapped)
    inner_args, inner_kwargs = tree_map(_unwrap, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if not stays:
        return result
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrap, result))


def _unwrap(value):
    if isinstance(value, torch.device):
        return HERE if value.type == NAME else value
    return value.inner if isinstance(value, StandIn) else value


def _wrap(value):
    plain = isinstance(value, torch.Tensor) and not isinstance(value, StandIn)
    return StandIn(value) if plain else value


class _Module(_DummyBackendModule):
    """What `torch.stand_in` is."""

    def get_rng_state(self, *_):
        return torch.get_rng_state()

    def set_rng_state(self, state, *_):
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class _Generator(torch.Generator):
    """A generator of the CPU, whichever device is asked for."""

    def __new__(cls, device=None):
        return super().__new__(cls)


def register():
    """Add the device to torch, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects
    torch.accelerator.synchronize = lambda *_: None
    torch.Generator = _Generator
    library = torch.library.Library("aten", "IMPL")
    for name, operator in _factories():
        library.impl(name, _make_kernel(operator), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    plain = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    plain.fallback(torch.library.fallthrough_kernel)
    _libraries.extend([library, plain])


def _factories():
    """Operators that make a tensor on a device from numbers alone."""
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.partition("::")[2].partition(".")
        if not full.startswith("aten::") or "sparse" in name or "nested" in name:
            continue
        operator = getattr(getattr(torch.ops.aten, name), overload or "default")
        arguments = {argument.name: str(argument.type) for argument in operator._schema.arguments}
        returns = [str(returned.type) for returned in operator._schema.returns]
        takes_tensors = any("Tensor" in kind for kind in arguments.values())
        if "device" in arguments and returns == ["Tensor"] and not takes_tensors:
            yield full.removeprefix("aten::"), operator


def _make_kernel(operator):
    def kernel(*args, **kwargs):
        return call(operator, args, kwargs | {"device": torch.device(NAME, 0)})

    return kernel


def _copy_from(source, target, non_blocking=False):
    _unwrap(target).copy_(_unwrap(source))
    return target


class StandInAccelerator(Accelerator):
    """Lightning's view of the device."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return [0]

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return NAME

    def get_device_stats(self, device):
        return {}


def trainer_arguments(device):
    """Arguments of a Trainer that trains on the device."""
    return {
        "accelerator": StandInAccelerator(),
        "devices": 1,
        "strategy": SingleDeviceStrategy(device),
    }
