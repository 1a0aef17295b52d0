"""Storages, and the types of their elements, as torch's pickles name them."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.core.source import Extent
from ckpt_tools.model.tensors import DTYPE_BITS
from ckpt_tools.model.values import Opaque, Value

STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}
_ALIASES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}


@dataclass(slots=True, eq=False)
class Storage(Opaque):
    """The bytes that tensors look into: ``numel`` elements of ``dtype``, kept under ``key``.

    ``extent`` is where they lie, None where that is not known or the record cannot hold them.
    """

    dtype: str = "uint8"
    key: str = ""
    location: str = ""
    numel: int = 0
    nbytes: int = 0
    extent: Extent | None = None


def dtype_name(value: Value) -> str | None:
    """Return ``float32`` for a reference to ``torch.float32``, None for what is no such reference."""
    if type(value) is not Opaque or value.called or not value.qualname.startswith("torch."):
        return None
    name = value.qualname[6:]
    name = _ALIASES.get(name, name)
    return name if name in DTYPE_BITS else None


def storage_dtype(kind: Opaque) -> str | None:
    """Return ``float32`` for a reference to ``torch.FloatStorage``, None for what is no storage."""
    module, _, title = kind.qualname.rpartition(".")
    return STORAGE_DTYPES.get(title) if f"{module}.".startswith("torch.") and not kind.called else None


_CALLED = ("torch.Tensor", "torch.Size", "torch.device", "torch.storage.UntypedStorage", "torch.storage.TypedStorage")


def not_callable(qualname: str) -> bool:
    """Say whether this name of torch's stands for a type of elements or of storages, which cannot be called."""
    name = qualname.rpartition(".")[2]
    if qualname in _CALLED:
        return False
    return name in STORAGE_DTYPES or (qualname.count(".") == 1 and (name in DTYPE_BITS or name.startswith("per_")))
