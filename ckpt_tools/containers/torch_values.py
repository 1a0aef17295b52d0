"""Tensors inside pickles: persistent ids and torch's rebuild functions become storages and tensor references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ckpt_tools.containers.numpy_values import numpy_array, numpy_dtype, numpy_scalar_value
from ckpt_tools.containers.pickle_names import named, several
from ckpt_tools.core.source import Extent
from ckpt_tools.model.findings import Problem, Spot
from ckpt_tools.model.tensors import DTYPE_BITS, Chunk, TensorRef
from ckpt_tools.model.values import Opaque, Value

__all__ = [
    "Storage",
    "TorchValues",
    "dtype_name",
    "flatten",
    "numpy_array",
    "numpy_dtype",
    "numpy_scalar_value",
    "several",
]

MAX_CACHED = 4096
MAX_DIMENSIONS = 128
MAX_NOTED = 50
MAX_PARTS = 64
MAX_NUMBER = 1 << 62

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


def _storage_dtype(kind: Opaque) -> str | None:
    module, _, title = kind.qualname.rpartition(".")
    return STORAGE_DTYPES.get(title) if f"{module}.".startswith("torch.") and not kind.called else None


_Geometry = tuple[
    tuple[int, ...],  # the shape and
    tuple[int, ...],  # the strides it is of, kept alive because they are looked up by ``id``
    int,  # elements
    int,  # elements from the first to the last one in memory
    tuple[int, ...] | None,  # strides where not dense
    tuple[int, ...],  # as many zeros as dimensions
]


@dataclass(slots=True)
class TorchValues:
    """Turns what one torch file refers to into values; the callbacks of ``pickle_stream.read``.

    ``place`` says where the bytes of a storage key lie.  ``storages`` are those that were mentioned, by key;
    ``overruns`` and ``inner`` belong to tensors by ``id`` (and keep them alive).  ``wrong`` counts, by what is wrong,
    the calls of torch's own functions that torch could not make.
    """

    place: Callable[[str], Extent | None] = lambda key: None
    byteorder: str = "little"
    storages: dict[str, Storage] = field(default_factory=dict)
    overruns: dict[int, tuple[TensorRef, int, int]] = field(default_factory=dict)
    inner: dict[int, tuple[TensorRef, dict[str, TensorRef]]] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    _geometry: dict[tuple[int, int], _Geometry] = field(default_factory=dict)

    def persistent(self, key: Value) -> Value:
        """Return the storage that a persistent id names; an id of another form is described."""
        parts = key
        if type(key) is tuple and len(key) == 4 and key[0] == "module" and type(key[1]) is Opaque:
            return key[1]  # a class, with its source text, in files of old versions
        if type(parts) is tuple and len(parts) == 1 and type(parts[0]) is tuple:
            parts = parts[0]
        if type(parts) is not tuple or len(parts) not in (5, 6) or parts[0] != "storage":
            return self._no_storage(key, "a reference to a storage has another form")
        _, kind, name, location, numel = parts[:5]
        if type(name) is not str or type(location) is not str or type(numel) is not int or type(kind) is not Opaque:
            return self._no_storage(key, "a reference to a storage has another form")
        known = self.storages.get(name)
        if known is not None and known.numel == numel and known.location == location:
            return known
        dtype = _storage_dtype(kind)
        if dtype is None or not 0 <= numel < MAX_NUMBER:
            return self._no_storage(key, f"{kind.qualname} is no storage" if dtype is None else "a storage has no size")
        nbytes = numel * (DTYPE_BITS[dtype] // 8)
        storage = Storage(kind.qualname, (), None, [], True, dtype, name, location, numel, nbytes, self.place(name))
        return storage if known is not None else self.storages.setdefault(name, storage)

    def _no_storage(self, key: Value, why: str) -> Opaque:
        self.wrong[why] = self.wrong.get(why, 0) + 1
        return Opaque("pickle.persistent_id", (key,), called=True)

    def rebuild(self, made: Opaque) -> Value:
        """Return the tensor that a call of torch's rebuild functions would give; anything else unchanged."""
        build = _REBUILD.get(made.qualname)
        if build is None:
            if made.qualname.startswith("torch.") and made.qualname.endswith("Storage"):
                self.wrong[f"{made.qualname} is called"] = self.wrong.get(f"{made.qualname} is called", 0) + 1
            return made
        result = build(self, made.args)
        if result is None and build in (_plain, _typed, _parameter):
            why = f"{made.qualname} is called with what makes no tensor"
            self.wrong[why] = self.wrong.get(why, 0) + 1
        return made if result is None else result

    def view(
        self,
        kind: Opaque,
        key: str,
        location: str,
        numel: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> TensorRef | None:
        """Return a plain tensor, as ``persistent`` and ``rebuild`` together would."""
        storage: Value = self.storages.get(key)
        if storage is None or storage.numel != numel or storage.location != location:
            storage = self.persistent(("storage", kind, key, location, numel))
        return self.tensor(storage, offset, shape, strides)

    def tensor(
        self, storage: Value, offset: Value, shape: Value, strides: Value, dtype: str | None = None, kind: str = ""
    ) -> TensorRef | None:
        """Return a view of ``storage``; None where the numbers make no tensor."""
        if type(storage) is not Storage or type(offset) is not int or offset < 0:
            return None
        if type(shape) is not tuple or type(strides) is not tuple:
            return None
        geometry = self._geometry.get((id(shape), id(strides))) or self._measure(shape, strides)
        if geometry is None:
            return None
        _, _, count, span, plain, origin = geometry
        name = dtype or storage.dtype
        width = DTYPE_BITS[name] // 8 or 1
        needed = (offset + span) * width if count else 0
        chunks: tuple[Chunk, ...] = ()
        extent = storage.extent
        overrun = needed > storage.nbytes
        if extent is not None and not overrun and needed <= extent.length:
            begin = offset * width if count else 0
            if begin or needed != extent.length:
                extent = Extent(extent.path, extent.offset + begin, needed - begin)
            chunks = (Chunk(origin, shape, extent, plain, self.byteorder),)
        ref = TensorRef("", name, shape, chunks, storage.key, kind)
        if overrun:
            self.overruns[id(ref)] = (ref, needed, storage.nbytes)
        return ref

    def _measure(self, shape: tuple[Value, ...], strides: tuple[Value, ...]) -> _Geometry | None:
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            return None
        count, last, dense = 1, 0, True
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if (
                type(size) is not int
                or type(stride) is not int
                or not 0 <= size < MAX_NUMBER
                or not 0 <= stride < MAX_NUMBER
            ):
                return None
            if stride != count and size != 1:
                dense = False
            count *= size
            last += (size - 1) * stride
        plain = None if dense or not count else strides
        geometry = (shape, strides, count, last + 1, plain, (0,) * len(shape))
        if len(self._geometry) < MAX_CACHED:
            self._geometry[id(shape), id(strides)] = geometry
        return geometry

    def wrapped(self, tensor: TensorRef, kind: str) -> TensorRef:
        """Return ``tensor`` as an instance of the class ``kind``."""
        result = TensorRef(tensor.fqn, tensor.dtype, tensor.shape, tensor.chunks, tensor.storage_id, kind)
        if id(tensor) in self.overruns:
            self.overruns[id(result)] = (result, *self.overruns[id(tensor)][1:])
        if id(tensor) in self.inner:
            self.inner[id(result)] = (result, self.inner[id(tensor)][1])
        return result

    def composed(self, tensor: TensorRef, parts: dict[str, TensorRef]) -> TensorRef:
        """Remember that ``tensor`` is made of ``parts``, so that these are named and checked as well."""
        self.inner[id(tensor)] = (tensor, parts)
        return tensor

    def flatten(self, value: Value) -> tuple[dict[str, TensorRef], list[Problem]]:
        """Return the tensors of ``value`` by name, and the views that reach beyond their storage.

        A tensor inside ``value`` gets its name as well, the first one where it is found in several places.
        """
        tensors: dict[str, TensorRef] = {}
        problems: list[Problem] = []
        repeats: dict[str, int] = {}
        overruns = 0
        for name, ref in named(value, self.inner):
            if name in tensors:
                plain = name
                while name in tensors:
                    repeats[plain] = repeats.get(plain, 1) + 1
                    name = f"{plain}#{repeats[plain]}"
            if ref.fqn:
                tensors[name] = TensorRef(name, ref.dtype, ref.shape, ref.chunks, ref.storage_id, ref.kind)
            else:
                object.__setattr__(ref, "fqn", name)  # made here, and seen by nobody else yet
                tensors[name] = ref
            if id(ref) in self.overruns:
                overruns += 1
                if overruns <= MAX_NOTED:
                    problems.append(_overrun(name, ref, *self.overruns[id(ref)][1:]))
        if overruns > MAX_NOTED:
            message = f"{overruns - MAX_NOTED:,} more tensors reach beyond their storage"
            problems.append(Problem("tensor-view-out-of-range", message))
        if self.wrong:
            count = sum(self.wrong.values())
            detail = (several(self.wrong), f"{count:,} of them; torch.load stops at the first")
            problems.append(Problem("pickle-damaged", "the pickle describes tensors that torch cannot make", detail))
        return tensors, problems


def _overrun(name: str, ref: TensorRef, needed: int, held: int) -> Problem:
    detail = (
        f"{name} needs {needed:,} bytes of its storage {ref.storage_id}, which has {held:,}",
        'torch.load stops with "setStorage: ... are out of bounds"',
    )
    return Problem("tensor-view-out-of-range", "a tensor reaches beyond its storage", detail, Spot(tensor=name))


# torch's rebuild functions ---------------------------------------------------------------------------------


def _plain(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) not in (4, 6, 7) or (len(args) > 4 and type(args[4]) is not bool):
        return None
    return values.tensor(args[0], args[1], args[2], args[3])


def _typed(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    dtype = dtype_name(args[6]) if len(args) in (7, 8) and type(args[4]) is bool else None
    return values.tensor(args[0], args[1], args[2], args[3], dtype) if dtype else None


def _parameter(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) not in (3, 4) or not isinstance(args[0], TensorRef):
        return None
    return values.wrapped(args[0], "torch.nn.parameter.Parameter")


def _from_type(values: TorchValues, args: tuple[Value, ...]) -> Value:
    if len(args) < 3 or type(args[0]) is not Opaque or type(args[1]) is not Opaque or type(args[2]) is not tuple:
        return None
    if _REBUILD.get(args[0].qualname) is _from_type:
        return None
    inner = values.rebuild(Opaque(args[0].qualname, args[2], called=True))
    if not isinstance(inner, TensorRef):
        return None
    result = values.wrapped(inner, args[1].qualname)
    state = args[3] if len(args) > 3 else None
    if type(state) is tuple and state and type(state[0]) is dict:
        state = state[0]
    parts: dict[str, TensorRef] = {}
    if type(state) is dict and len(state) <= MAX_PARTS:
        parts = {str(k): v for k, v in state.items() if isinstance(v, TensorRef)}
    if parts and not result.chunks:
        if len(parts) == 1:
            (only,) = parts.values()
            if only.shape == result.shape and only.dtype == result.dtype:
                return values.wrapped(only, result.kind)
        return values.composed(result, parts)
    return result


def _described(values: TorchValues, dtype: Value, shape: Value, kind: str) -> TensorRef | None:
    name = dtype_name(dtype)
    if name is None or type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        return None
    if not all(type(size) is int and 0 <= size < MAX_NUMBER for size in shape):
        return None
    return TensorRef("", name, shape, (), None, kind)


def _wrapper(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) < 3 or type(args[0]) is not Opaque:
        return None
    return _described(values, args[1], args[2], args[0].qualname)


def _meta(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    return _described(values, args[0], args[1], "meta") if len(args) >= 2 else None


def _quantised(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) < 5:
        return None
    result = values.tensor(args[0], args[1], args[2], args[3], kind="quantized")
    settings = args[4] if type(args[4]) is tuple else ()
    names = ("scales", "zero_points")
    parts = {n: v for n, v in zip(names, settings[1:3], strict=False) if isinstance(v, TensorRef)}
    return values.composed(result, parts) if result is not None and parts else result


def _sparse(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) < 2 or type(args[0]) is not Opaque or type(args[1]) is not tuple or len(args[1]) > 8:
        return None
    tensors = [part for part in args[1] if isinstance(part, TensorRef)]
    shape = next((part for part in args[1] if type(part) is tuple), None)
    if shape is None or len(tensors) not in (2, 3) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    names = ("indices", "values") if len(tensors) == 2 else ("compressed_indices", "plain_indices", "values")
    named = args[0].args[0] if args[0].called and args[0].args else args[0].qualname  # _get_layout("torch.sparse_coo")
    layout = named if type(named) is str else "torch.sparse"
    ref = TensorRef("", tensors[-1].dtype, shape, (), tensors[-1].storage_id, layout)
    return values.composed(ref, dict(zip(names, tensors, strict=True)))


def _from_numpy(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    array = numpy_array(args[0]) if len(args) >= 2 else None
    return _described(values, args[1], array[1], "numpy") if array is not None else None


_REBUILD: dict[str, Callable[[TorchValues, tuple[Value, ...]], Value]] = {
    "torch._utils._rebuild_tensor": _plain,
    "torch._utils._rebuild_tensor_v2": _plain,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch.tensor._rebuild_from_type": _from_type,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_xla_tensor": _from_numpy,
}


def flatten(value: Value) -> dict[str, TensorRef]:
    """Return every tensor of ``value`` by its key path, in the order they are written.

    Keys and positions are joined by dots (``state.0.exp_avg``); the keys of a flat state dict are its names as
    they are.  An object's state adds no step of its own.  A name that two paths share gets ``#2``, ``#3`` ... from
    the second on; a value that is itself a tensor is called ``tensor``.
    """
    return TorchValues().flatten(value)[0]
