"""The reader of PyTorch files: right about arrays, and deaf to code."""

import os
import pickle
import struct

import numpy as np
import pytest

from stages.common import torch_checkpoint


def name(module: str, attribute: str) -> bytes:
    return b"c%s\n%s\n" % (module.encode(), attribute.encode())


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integers(values) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor(key, storage_type, count, offset, shape, stride) -> bytes:
    """The pickle code of one tensor, as PyTorch 1.5 wrote it."""
    size, start = (b"J" + struct.pack("<i", value) for value in (count, offset))
    storage = (
        b"(" + text("storage") + name("torch", storage_type) + text(key) + text("cpu") + size
    ) + b"NtQ"
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = b"(" + storage + start + integers(shape) + integers(stride) + b"\x89" + hooks + b"t"
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(code: bytes) -> bytes:
    return b"\x80\x02" + code + b"."


def checkpoint(tensors: dict[str, bytes], storages: dict[str, np.ndarray]) -> bytes:
    """A whole file of the format before PyTorch 1.6."""
    entries = b"".join(text(key) + code for key, code in tensors.items())
    parts = [
        pickle.dumps(torch_checkpoint.MAGIC_NUMBER, 2),
        pickle.dumps(torch_checkpoint.PROTOCOL, 2),
        pickle.dumps({"little_endian": True}, 2),
        pickled(name("collections", "OrderedDict") + b")R(" + entries + b"u"),
        pickle.dumps(sorted(storages), 2),
    ]
    for key in sorted(storages):
        parts += [struct.pack("<q", storages[key].size), storages[key].tobytes()]
    return b"".join(parts)


NUMBERS = np.arange(24, dtype="<f4")
COUNTS = np.array([7, 2**40], "<i8")
STORAGES = {"0": NUMBERS, "1": COUNTS}


@pytest.fixture
def read(tmp_path):
    """A function that reads the arrays of a file with the given bytes."""

    def read_bytes(content: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return torch_checkpoint.read_arrays(path)

    return read_bytes


def test_arrays_come_back_by_name(read):
    tensors = {
        "kernel": tensor("0", "FloatStorage", 24, 0, (2, 3, 4), (12, 4, 1)),
        "counts": tensor("1", "LongStorage", 2, 0, (2,), (1,)),
    }
    arrays = read(checkpoint(tensors, STORAGES))
    assert list(arrays) == ["kernel", "counts"]
    assert arrays["kernel"].dtype == np.float32
    assert arrays["counts"].dtype == np.int64
    np.testing.assert_array_equal(arrays["kernel"], NUMBERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(arrays["counts"], COUNTS)


def test_strides_and_offsets_are_honoured(read):
    tensors = {
        "transposed": tensor("0", "FloatStorage", 24, 0, (4, 6), (1, 4)),
        "column": tensor("0", "FloatStorage", 24, 3, (6,), (4,)),
        "repeated": tensor("0", "FloatStorage", 24, 5, (3,), (0,)),
        "scalar": tensor("1", "LongStorage", 2, 1, (), ()),
    }
    arrays = read(checkpoint(tensors, STORAGES))
    rows = NUMBERS.reshape(6, 4)
    np.testing.assert_array_equal(arrays["transposed"], rows.T)
    np.testing.assert_array_equal(arrays["column"], rows[:, 3])
    np.testing.assert_array_equal(arrays["repeated"], [5, 5, 5])
    assert arrays["scalar"] == 2**40


def test_what_belongs_to_the_file_can_be_changed(read):
    tensors = {"kernel": tensor("0", "FloatStorage", 24, 0, (24,), (1,))}
    kernel = read(checkpoint(tensors, {"0": NUMBERS}))["kernel"]
    kernel += 1
    np.testing.assert_array_equal(kernel, NUMBERS + 1)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"), [(0, (25,), (1,)), (20, (5,), (1,)), (0, (6, 4), (5, 1))]
)
def test_a_tensor_larger_than_its_storage_is_refused(read, offset, shape, stride):
    tensors = {"kernel": tensor("0", "FloatStorage", 24, offset, shape, stride)}
    with pytest.raises(ValueError, match="kernel"):
        read(checkpoint(tensors, {"0": NUMBERS}))


def test_a_file_that_is_cut_off_is_refused(read):
    tensors = {"kernel": tensor("0", "FloatStorage", 24, 0, (24,), (1,))}
    with pytest.raises(ValueError, match=r"kernel|weights\.pth"):
        read(checkpoint(tensors, {"0": NUMBERS})[:-8])


@pytest.mark.parametrize("magic_number", [0, "PK", torch_checkpoint.MAGIC_NUMBER + 1])
def test_another_format_is_refused(read, magic_number):
    with pytest.raises(ValueError, match=r"weights\.pth is no PyTorch checkpoint"):
        read(pickle.dumps(magic_number, 2))


class Intruder:
    """Unpickled by an ordinary reader, it runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", range(5))
def test_code_in_a_file_is_never_run(read, tmp_path, place):
    trace = tmp_path / "trace"
    attack = pickle.dumps(Intruder(f"touch {trace}"), 2)
    # The attack is real: pickle itself falls for it.
    pickle.loads(attack)
    assert trace.exists()
    trace.unlink()

    tensors = {"kernel": tensor("0", "FloatStorage", 24, 0, (24,), (1,))}
    parts = [part + b"." for part in checkpoint(tensors, {}).split(b".\x80\x02")]
    pickles = [parts[0], *(b"\x80\x02" + part for part in parts[1:])]
    pickles[place] = attack
    with pytest.raises(pickle.UnpicklingError, match=r"asks for (posix|nt)\.system"):
        read(b"".join(pickles))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "HalfStorage"),
        ("collections", "OrderedDict.fromkeys"),
        ("numpy", "load"),
    ],
)
def test_any_name_that_plain_tensors_do_not_need_is_refused(read, module, attribute):
    with pytest.raises(pickle.UnpicklingError, match=f"asks for {module}.{attribute}, which no"):
        read(pickled(name(module, attribute)))


def test_a_view_of_a_storage_is_refused(read):
    code = tensor("0", "FloatStorage", 24, 0, (24,), (1,)).replace(b"NtQ", text("view") + b"tQ")
    with pytest.raises(pickle.UnpicklingError, match="views"):
        read(checkpoint({"kernel": code}, {"0": NUMBERS}))
