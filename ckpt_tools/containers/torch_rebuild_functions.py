"""torch's rebuild functions: what their calls in a pickle give, and which calls torch itself could not make."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ckpt_tools.containers import torch_rebuild_shards as shards
from ckpt_tools.containers.numpy_values import numpy_array
from ckpt_tools.containers.torch_storage_types import dtype_name
from ckpt_tools.model.tensors import TensorRef
from ckpt_tools.model.values import Opaque, Pairs, Value

if TYPE_CHECKING:
    from ckpt_tools.containers.torch_values import TorchValues

MAX_DIMENSIONS = 128
MAX_PARTS = 64
MAX_NUMBER = 1 << 62

# torch's rebuild functions ---------------------------------------------------------------------------------


_BASIC = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, TensorRef, Pairs)


def _fits(
    values: TorchValues, args: tuple[Value, ...], function: str, least: int, most: int, basic: tuple[type, ...] = _BASIC
) -> bool:
    """Say whether a call has as many arguments as the function takes, and the first is none of the ``basic`` types."""
    if not least <= len(args) <= most:
        values.fault(f"{function} takes {least} to {most} values, and is called with {len(args)}")
        return False
    if isinstance(args[0], basic) or (type(args[0]) is Opaque and not args[0].called):
        values.fault(f"{function} is called with a {_called(args[0])} in the place of its data")
        return False
    return True


def _called(value: Value) -> str:
    return value.qualname if isinstance(value, Opaque) else type(value).__name__


def _view(
    values: TorchValues, args: tuple[Value, ...], dtype: str | None = None, grad: Value = False, kind: str = ""
) -> TensorRef | None:
    made = values.tensor(args[0], args[1], args[2], args[3], dtype, kind)
    if made is None:
        if not (type(args[0]) is Opaque and args[0].called):
            values.fault("a tensor is described by numbers that make none")
    elif type(grad) is not bool:
        values.fault("requires_grad of a tensor is neither true nor false")
    elif grad and not made.dtype.startswith(("float", "bfloat", "complex")):
        values.fault(f"a tensor of {made.dtype} requires a gradient")
    return made


def _bits(values: TorchValues, made: TensorRef | None, metadata: Value) -> TensorRef | None:
    if metadata and type(metadata) is not dict:
        values.fault("the metadata of a tensor are no dictionary")
    elif metadata and metadata.get("conj") is True and made is not None and not made.dtype.startswith("complex"):
        values.fault(f"a tensor of {made.dtype} is marked as conjugate")
    return made


def _first(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    return _view(values, args) if _fits(values, args, "_rebuild_tensor", 4, 4) else None


def _plain(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if not _fits(values, args, "_rebuild_tensor_v2", 6, 7):
        return None
    made = _view(values, args, None, args[4])
    return _bits(values, made, args[6]) if len(args) == 7 else made


def _typed(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if not _fits(values, args, "_rebuild_tensor_v3", 7, 8):
        return None
    name = dtype_name(args[6])
    if name is None and args[6] is not None:
        if isinstance(args[6], _BASIC) or args[6].called or not args[6].qualname.startswith("torch."):
            values.fault("a tensor has a type that is none")
        return None
    if args[4] is True:
        values.fault("a tensor of this kind requires a gradient, which torch cannot give it")
    made = _view(values, args, name or "float32", False if args[4] is None else args[4])
    return _bits(values, made, args[7]) if len(args) == 8 else made


def _parameter(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    return _wrapped(values, args, "_rebuild_parameter", 3)


def _parameter_with_state(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    return _wrapped(values, args, "_rebuild_parameter_with_state", 4)


def _wrapped(values: TorchValues, args: tuple[Value, ...], function: str, count: int) -> TensorRef | None:
    basic = tuple(kind for kind in _BASIC if kind not in (TensorRef, type(None)))
    if not _fits(values, args, function, count, count, basic) or not isinstance(args[0], TensorRef):
        return None
    if type(args[1]) is not bool:
        values.fault("requires_grad of a parameter is neither true nor false")
    elif args[1] and not args[0].dtype.startswith(("float", "bfloat", "complex")):
        values.fault(f"a parameter of {args[0].dtype} requires a gradient")
    return values.wrapped(args[0], "torch.nn.parameter.Parameter")


def _of_class(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) > 2 or (args and isinstance(args[0], _BASIC) and not isinstance(args[0], TensorRef | None)):
        values.fault("Parameter is called with what is no tensor")
    return None


def _from_type(values: TorchValues, args: tuple[Value, ...]) -> Value:
    if len(args) != 4 or not isinstance(args[0], Opaque) or type(args[2]) is not tuple:
        values.fault(f"_rebuild_from_type_v2 is called with {len(args)} values that make no tensor")
        return None
    if type(args[1]) is not Opaque or args[1].called:
        values.fault("_rebuild_from_type_v2 is given no class of tensors")
        return None
    if type(args[0]) is not Opaque:
        return None
    if REBUILD.get(args[0].qualname) is _from_type:
        return None
    inner = values.rebuild(Opaque(args[0].qualname, args[2], called=True))
    if not isinstance(inner, TensorRef):
        return None
    result = values.wrapped(inner, args[1].qualname)
    held = _held(args[3])
    parts = {key: part for key, part in held.items() if isinstance(part, TensorRef)}
    if not parts or result.chunks:
        return result
    if shards.SPEC in held and shards.LOCAL in parts:
        return _sharded(values, result, held[shards.SPEC], parts[shards.LOCAL])
    if len(parts) == 1:
        (only,) = parts.values()
        if only.shape == result.shape and only.dtype == result.dtype:
            return values.wrapped(only, result.kind)
    return values.composed(result, parts)


def _held(state: Value) -> dict[str, Value]:
    """Return what an object is given by name: as its dictionary, in its slots, or both."""
    both = (
        state if type(state) is tuple and len(state) == 2 else (state[0] if type(state) is tuple and state else state,)
    )
    found: dict[str, Value] = {}
    for names in both:
        if type(names) is dict and len(names) <= MAX_PARTS:
            found |= {str(key): value for key, value in names.items()}
    return found


def _sharded(values: TorchValues, whole: TensorRef, spec: Value, local: TensorRef) -> TensorRef:
    """Return the piece of a tensor that this file holds, and remember where it belongs, if that can be told."""
    piece = values.wrapped(local, whole.kind)
    box = shards.box(spec, whole.shape)
    if box is not None and box[1] == local.shape and local.dtype == whole.dtype:
        values.pieces[id(piece)] = piece, (whole.shape, box[0])
        values.rank = shards.rank(spec) if values.rank is None else values.rank
    return piece


def _described(values: TorchValues, dtype: Value, shape: Value, kind: str) -> TensorRef | None:
    name = dtype_name(dtype)
    if name is None or type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        return None
    if not all(type(size) is int and 0 <= size < MAX_NUMBER for size in shape):
        return None
    return TensorRef("", name, shape, (), None, kind)


def _wrapper(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) < 3 or type(args[0]) is not Opaque or args[0].called:
        values.fault("_rebuild_wrapper_subclass is given no class of tensors")
        return None
    return _described(values, args[1], args[2], args[0].qualname)


def _meta(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) != 4:
        values.fault(f"_rebuild_meta_tensor_no_storage takes 4 values, and is called with {len(args)}")
        return None
    return _described(values, args[0], args[1], "meta")


def _quantised(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if not _fits(values, args, "_rebuild_qtensor", 7, 7):
        return None
    result = _view(values, args, None, args[5], "quantized")
    settings = args[4] if type(args[4]) is tuple else ()
    names = ("scales", "zero_points")
    parts = {n: v for n, v in zip(names, settings[1:3], strict=False) if isinstance(v, TensorRef)}
    return values.composed(result, parts) if result is not None and parts else result


def _sparse(values: TorchValues, args: tuple[Value, ...]) -> TensorRef | None:
    if len(args) != 2 or isinstance(args[0], _BASIC):
        values.fault("_rebuild_sparse_tensor is called with what makes no tensor")
        return None
    if type(args[0]) is not Opaque or type(args[1]) is not tuple or len(args[1]) > 8:
        return None
    if len(args[1]) not in ((3, 4) if args[0].args == ("torch.sparse_coo",) else (4,)):
        values.fault(f"_rebuild_sparse_tensor is given {len(args[1])} parts")
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


def _layout(values: TorchValues, args: tuple[Value, ...]) -> None:
    if len(args) != 1 or type(args[0]) is not str or args[0] not in _LAYOUTS:
        values.fault("_get_layout is asked for a layout that there is not")


def _device(values: TorchValues, args: tuple[Value, ...]) -> None:
    fits = len(args) == 1 and isinstance(args[0], str | int | Opaque)
    if not fits and [type(part) for part in args] != [str, int]:
        values.fault("torch.device is called with what names no device")


_LAYOUTS = frozenset(
    f"torch.{name}"
    for name in ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "_mkldnn", "jagged")
)

REBUILD: dict[str, Callable[[TorchValues, tuple[Value, ...]], Value]] = {
    "torch._utils._rebuild_tensor": _first,
    "torch._utils._rebuild_tensor_v2": _plain,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch.nn.parameter.Parameter": _of_class,
    "torch.serialization._get_layout": _layout,
    "torch.device": _device,
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
