"""Reads the arrays of a PyTorch checkpoint without PyTorch, which is a hundred times their size.

The format before PyTorch 1.6: five pickles (magic number, protocol, system, objects, keys of the
storages) and then the storages' bytes. A pickle can run any code, so only the names that such a
file of plain tensors needs are admitted.
"""

import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


@dataclass(frozen=True)
class _Tensor:
    storage_key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage_key, offset, shape, stride, *_unused) -> _Tensor:
    return _Tensor(storage_key, offset, tuple(shape), tuple(stride))


_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    dtypes: dict[str, np.dtype]

    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the checkpoint asks for {module}.{name}, which no file of plain tensors needs; "
                "it is not loaded, since a pickle can run any code"
            ) from None

    def persistent_load(self, identifier):
        _, dtype, key, _, _, view = identifier
        if view is not None:
            raise pickle.UnpicklingError("the checkpoint holds views of storages; expected none")
        self.dtypes[key] = dtype
        return key


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their names, float32 or int64, in PyTorch's axis order.

    Raises:
        ValueError: the file is no checkpoint of that format.
        pickle.UnpicklingError: it asks for a name that is not admitted.
    """
    dtypes: dict[str, np.dtype] = {}

    def load(file):
        unpickler = _RestrictedUnpickler(file)
        unpickler.dtypes = dtypes
        return unpickler.load()

    with path.open("rb") as file:
        if load(file) != MAGIC_NUMBER or load(file) != PROTOCOL:
            raise ValueError(f"{path} is no PyTorch checkpoint of the format before 1.6")
        load(file)  # the sizes of C types on the machine that wrote it
        tensors: dict[str, _Tensor] = load(file)
        storages = {}
        for key in load(file):
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key])
    return {name: _to_array(name, tensor, storages) for name, tensor in tensors.items()}


def _to_array(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    storage = storages[tensor.storage_key]
    offset, *strides = (step * storage.itemsize for step in (tensor.offset, *tensor.stride))
    try:
        # Unlike as_strided, this checks that the array lies inside the storage.
        array = np.ndarray(tensor.shape, storage.dtype, storage, offset, strides)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's {name} does not fit its storage: {error}") from None
    return array.copy()
