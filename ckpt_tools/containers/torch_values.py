"""Tensors inside pickles: persistent ids and torch's rebuild functions become storages and tensor references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ckpt_tools.containers.numpy_values import numpy_array, numpy_dtype, numpy_scalar_value
from ckpt_tools.containers.pickle_names import named, several
from ckpt_tools.containers.torch_rebuild_functions import REBUILD
from ckpt_tools.containers.torch_storage_types import Storage, dtype_name, not_callable, storage_dtype
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
MAX_NUMBER = 1 << 62
_OF_ONE = ("torch.Tensor", "torch.nn.parameter.Parameter")

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
    ``overruns``, ``inner`` and ``pieces`` (the shape that a piece is of, and its place in it, as ``rank`` had them)
    belong to tensors by ``id`` (and keep them alive).  ``wrong`` counts, by what is wrong, the calls of torch's own
    functions that torch could not make, ``strays`` the references that name no storage.
    """

    place: Callable[[str], Extent | None] = lambda key: None
    byteorder: str = "little"
    legacy: bool = False
    storages: dict[str, Storage] = field(default_factory=dict)
    overruns: dict[int, tuple[TensorRef, int, int]] = field(default_factory=dict)
    inner: dict[int, tuple[TensorRef, dict[str, TensorRef]]] = field(default_factory=dict)
    pieces: dict[int, tuple[TensorRef, tuple[tuple[int, ...], tuple[int, ...]]]] = field(default_factory=dict)
    rank: int | None = None
    wrong: dict[str, int] = field(default_factory=dict)
    strays: dict[str, int] = field(default_factory=dict)
    _geometry: dict[tuple[int, int], _Geometry] = field(default_factory=dict)
    _dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many parts a reference to a storage has: torch unpacks it without asking."""
        return (6,) if self.legacy else (5,)

    def persistent(self, key: Value) -> Value:
        """Return the storage that a persistent id names; an id of another form is described."""
        if type(key) is tuple and len(key) == 4 and key[0] == "module" and type(key[1]) is Opaque:
            return key[1]  # a class, with its source text, in files of old versions
        if type(key) is not tuple or len(key) not in self.lengths or key[0] not in ("storage", b"storage"):
            return self._no_storage(key, "a reference to a storage has another form")
        _, kind, name, location, numel = key[:5]
        if type(name) is int:
            name = str(name)
        dtype = storage_dtype(kind) if type(kind) is Opaque else None
        if isinstance(kind, TensorRef | Storage):
            dtype, kind = kind.dtype, Opaque("torch.storage.TypedStorage")  # torch asks for its ``dtype`` only
        if dtype is None or type(name) is not str:
            return self._no_storage(key, "a reference to a storage names no kind of storage, or no key")
        if self.legacy and kind.qualname.endswith("UntypedStorage"):
            return self._no_storage(key, "torch reads no untyped storages (float8 and others) in this old format")
        if self.legacy and key[5] is not None and (type(key[5]) not in (tuple, list) or len(key[5]) != 3):
            return self._no_storage(key, "a reference to a part of a storage has another form")
        known = self.storages.get(name)
        if known is not None and known.nbytes:
            return known  # as torch does, whatever this reference says of its size and type
        if not isinstance(numel, int) or not 0 <= numel < MAX_NUMBER:
            return self._no_storage(key, "a reference to a storage gives it no size")
        if type(location) is not str:  # torch asks for it last, and not at all where the caller names a device
            location = type(location).__name__
        storage = self._store(kind.qualname, dtype, name, location, int(numel))
        if storage is not None:
            return storage
        return self._no_storage(key, "one storage has two sizes, of which one is 0")

    def _store(self, qualname: str, dtype: str, name: str, location: str, numel: int) -> Storage | None:
        """Return a storage that was not known, or was known to be empty; None where it is not empty any more."""
        nbytes = numel * (DTYPE_BITS[dtype] // 8)
        storage = Storage(qualname, (), None, [], True, dtype, name, location, numel, nbytes, self.place(name))
        if name not in self.storages:
            self.storages[name] = storage
        elif nbytes:
            return None
        return storage

    def _no_storage(self, key: Value, why: str) -> Opaque:
        self.strays[why] = self.strays.get(why, 0) + 1
        return Opaque("pickle.persistent_id", (key,), called=True)

    def rebuild(self, made: Opaque) -> Value:
        """Return the tensor that a call of torch's rebuild functions would give; anything else unchanged."""
        build = REBUILD.get(made.qualname)
        if build is None:
            if made.qualname.startswith("torch.") and not_callable(made.qualname):
                self.fault(f"{made.qualname} is called")
            elif made.qualname in _OF_ONE and len(made.args) > 2 and type(made.args[0]) is Storage:
                self.fault(f"{made.qualname} is called as if it were a function that rebuilds tensors")
            elif made.qualname.startswith("pathlib.") and any(type(arg) is not str for arg in made.args):
                self.fault(f"{made.qualname} is made of something else than names")
            return made
        result = build(self, made.args)
        return made if result is None else result

    def fault(self, why: str) -> None:
        """Count a call of one of torch's own functions that torch cannot make."""
        self.wrong[why] = self.wrong.get(why, 0) + 1

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
        if storage is None:
            dtype = self._dtypes.get(kind.qualname)
            if dtype is not None and not kind.called and 0 <= numel < MAX_NUMBER:
                storage = self._store(kind.qualname, dtype, key, location, numel)
            else:
                storage = self.persistent(("storage", kind, key, location, numel))
                if type(storage) is Storage:
                    self._dtypes[kind.qualname] = storage.dtype
        elif not storage.nbytes or storage.qualname != kind.qualname:
            storage = self.persistent(("storage", kind, key, location, numel))
        return self.tensor(storage, offset, shape, strides)

    def tensor(
        self, storage: Value, offset: Value, shape: Value, strides: Value, dtype: str | None = None, kind: str = ""
    ) -> TensorRef | None:
        """Return a view of ``storage``; None where the numbers make no tensor."""
        if type(storage) is not Storage or type(offset) is not int or offset < 0:
            return None
        if type(shape) is list:
            shape = tuple(shape)
        if type(shape) is tuple and (strides is None or (strides in ((), []) and shape)):
            strides = _dense(shape)
        if type(strides) is list:
            strides = tuple(strides)
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
        if id(tensor) in self.pieces:
            self.pieces[id(result)] = (result, self.pieces[id(tensor)][1])
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
            problems.append(_impossible("the pickle describes tensors that torch cannot make", self.wrong))
        return tensors, problems

    def placed(self, tensors: dict[str, TensorRef]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return by name of which shape the pieces of larger tensors are, and where they begin in it."""
        named = ((name, self.pieces.get(id(ref))) for name, ref in tensors.items())
        return {name: held[1] for name, held in named if held is not None}

    def refusals(self) -> list[Problem]:
        """Return the problem of references to storages that torch's own loader stops at, if there are any."""
        return [_impossible("the pickle refers to storages that torch cannot find", self.strays)] if self.strays else []


def _impossible(message: str, reasons: dict[str, int]) -> Problem:
    detail = (several(reasons), f"{sum(reasons.values()):,} of them; torch.load stops at the first")
    return Problem("pickle-damaged", message, detail)


def _dense(shape: tuple[Value, ...]) -> tuple[int, ...]:
    """Return the strides that torch takes where none are given."""
    strides: list[int] = []
    count = 1
    for size in reversed(shape):
        strides.append(count)
        count *= max(size, 1) if type(size) is int else 1
    return tuple(reversed(strides))


def _overrun(name: str, ref: TensorRef, needed: int, held: int) -> Problem:
    detail = (
        f"{name} needs {needed:,} bytes of its storage {ref.storage_id}, which has {held:,}",
        'torch.load stops with "setStorage: ... are out of bounds"',
    )
    return Problem("tensor-view-out-of-range", "a tensor reaches beyond its storage", detail, Spot(tensor=name))


def flatten(value: Value) -> dict[str, TensorRef]:
    """Return every tensor of ``value`` by its key path, in the order they are written.

    Keys and positions are joined by dots (``state.0.exp_avg``); the keys of a flat state dict are its names as
    they are.  An object's state adds no step of its own.  A name that two paths share gets ``#2``, ``#3`` ... from
    the second on; a value that is itself a tensor is called ``tensor``.
    """
    return TorchValues().flatten(value)[0]
