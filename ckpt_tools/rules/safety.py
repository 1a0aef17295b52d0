"""CK7xx: what a file could do to the one who loads it.  Globals of pickles are listed, never imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ckpt_tools.layouts.match import is_newest
from ckpt_tools.model.checkpoint import Part, Role
from ckpt_tools.model.findings import BREAKS_ALL, HARMLESS, Severity, Spot
from ckpt_tools.model.values import as_mapping
from ckpt_tools.rules.base import Context, Hit, Rule, leaves_directory, relay, rule

_OTHERS = (
    "_codecs.encode builtins.bytearray builtins.complex builtins.set collections.Counter collections.OrderedDict "
    "torch.Size torch.Tensor torch.device torch.nn.parameter.Parameter torch._tensor._rebuild_from_type_v2 "
    "torch.serialization._get_layout torch.storage.TypedStorage torch.storage.UntypedStorage"
)
_NUMBERS = "BFloat16 Bool Byte Char Double Float Half Int Long Short"
_COMPLEX = "ComplexDouble ComplexFloat"
_SPARSE = "BFloat16 Byte Char Double Float Half Int Long Short"
_QUANTISED = "QInt32 QInt8 QUInt2x4 QUInt4x2 QUInt8"
_DTYPES = (
    "bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 float4_e2m1fn_x2"
    " float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int1 int16 int2 int3 int32 int4"
    " int5 int6 int64 int7 int8 qint32 qint8 quint2x4 quint4x2 quint8 uint1 uint16 uint2 uint3 uint32 uint4 uint5 uint6"
    " uint64 uint7 uint8"
)
_SCHEMES = (
    "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine per_tensor_symmetric"
)
_REBUILD = (
    "device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter "
    "parameter_with_state qtensor sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass"
)

ALLOWED = frozenset(
    [
        *_OTHERS.split(),
        *(f"torch.{name}Tensor" for name in _NUMBERS.split()),
        *(f"torch.cuda.{name}Tensor" for name in _NUMBERS.split()),
        *(f"torch.{where}sparse.{name}Tensor" for where in ("", "cuda.") for name in _SPARSE.split()),
        *(f"torch.{name}Storage" for name in f"{_NUMBERS} {_COMPLEX} {_QUANTISED}".split()),
        *(f"torch.cuda.{name}Storage" for name in f"{_NUMBERS} {_COMPLEX}".split()),
        *(f"torch.{name}" for name in f"{_DTYPES} {_SCHEMES}".split()),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILD.split()),
    ]
)
"""What ``torch.load(weights_only=True)`` builds: ``_weights_only_unpickler._get_allowed_globals`` in torch 2.13."""

# Names of Python 2 that torch translates, since its pickles are of protocol 2.
_ALIASES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}

# What the Trainer allows besides for rng files (``safe_globals``), and accelerate for all (``TORCH_SAFE_GLOBALS``).
_ARRAYS = frozenset(
    (
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.dtypes.UInt32DType",
    )
)
# Libraries that add their tensor classes to torch's list when they are imported, as a trainer that wrote them does.
# A ``ShardedTensor`` (``torch.distributed._shard``) is on no list.
_OWN_LISTS = (
    "torch.distributed.tensor.",
    "torch.distributed._tensor.",
    "torch.distributed.device_mesh.",
    "torch.distributed._mesh_layout.",
    "torch.nested._internal.nested_tensor.",
    "torchao.",
)
# What the states of DeepSpeed and of Megatron-LM hold, and what loads them builds.
_OF_STATES = (
    *("deepspeed.", "megatron.", "argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath"),
    *("signal.Signals", "io.BytesIO"),
)
# Libraries that load their files with ``weights_only=False`` themselves, and those whose files are all of one kind.
_UNSAFE = ("timm", "ultralytics")
_ALIKE = ("detectron2", "lightning", "mmengine")
# Those that load the files of ranks with the safe load; others load them without.
_SAFE = ("fsdp",)
_SCALARS = frozenset(("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "numpy.dtype"))

_DANGEROUS = re.compile(
    r"(?:os|posix|nt|subprocess|_posixsubprocess|popen2|sys|socket|socketserver|ssl|shutil|runpy|importlib|imp|pkgutil|pty|"
    r"ctypes|_ctypes|cffi|webbrowser|pdb|bdb|doctest|pickle|_pickle|cPickle|marshal|urllib|urllib2|requests|httplib|http|"
    r"ftplib|smtplib|telnetlib|pip|idlelib|zipimport|pydoc|lib2to3|distutils|setuptools|torch\.hub|torch\.jit|"
    r"torch\.utils\.cpp_extension|numpy\.testing|numpy\.f2py|multiprocessing\.(?:util|reduction|popen_\w+))\..+"
    r"|builtins\.(?:eval|exec|compile|open|__import__|execfile|input|breakpoint|globals|apply|file)"
    r"|types\.(?:CodeType|FunctionType)|torch\.(?:load|serialization\.load)|numpy\.(?:load|fromfile)"
    r"|commands\.get\w+|code\.(?:interact|Interactive.+)|timeit\.\w+|(?:cP|p)rofile\.(?:run|runctx|Profile.*)|trace\.Trace.*"
    r"|operator\.(?:methodcaller|attrgetter)|io\.open(?:_code)?|_io\.(?:open|open_code|FileIO)",
)
"""Modules and functions that run, open, fetch or load something; found in no file that a trainer writes."""

_STATES = (Role.MODEL_STATES, Role.OPTIMIZER_STATES, Role.COMMON)
_CHECKED = (Role.OPTIMIZER, Role.SCHEDULER, Role.SCALER, Role.WEIGHTS, Role.ADAPTER, Role.RNG, Role.COMBINED, *_STATES)
_SHOWN = 10


def _listed(names: list[str]) -> str:
    more = f" ... and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _globals(part: Part, context: Context) -> list[str]:
    """Return the names that the pickle of a part refers to, as Python 3 calls them."""
    content = context.content(part)
    names = content.globals if content is not None else {}
    found = (name.partition(".") for name in names)
    return [f"{_ALIASES.get(module, module)}.{rest}" for module, _, rest in found]


def _is_dangerous(name: str) -> bool:
    return _DANGEROUS.fullmatch(name) is not None


def loaded_without_safety(part: Part) -> bool:
    """Return whether what loads a file does so without ``weights_only=True``, or may: the code of a plain loop."""
    if part.role in _STATES:
        return part.layout not in _SAFE
    return part.role is Role.COMBINED


def _told_elsewhere(part: Part, context: Context) -> bool:
    """Return whether the library loads such files itself, or the newest of its run tells the same of all."""
    if part.role is not Role.COMBINED or part.layout not in (*_UNSAFE, *_ALIKE):
        return False
    return part.layout in _UNSAFE or not is_newest(context.run, context.view.checkpoint)


@rule("CK701", "pickle-refused-by-weights-only", Severity.ERROR, Part, impact=None)
def pickle_refused(part: Part, context: Context) -> Iterator[Hit]:
    """A torch file names objects that `torch.load(weights_only=True)` does not build, or is of pickle protocol 4 or 5.

    **Why it matters.** A resume loads optimizer, schedule and weights in this way, and so does `torch.load` by itself
    since 2.6: `Unsupported global`. The names are listed; whether they are harmless is for you to say.

    **How to repair.** Load the file where you trust it, turn the objects into plain numbers, lists and tensors, and
    save it again.

    **Known exceptions.** numpy arrays in rng files, which the trainers allow themselves, and everywhere under
    accelerate. numpy scalars are CK521. `training_args.bin` is full of objects and never read at a resume. The file
    of a plain loop is read by its own code: a note. So it is for DeepSpeed's and Megatron-LM's files of ranks, loaded
    without this safety: their own objects in them are not told. timm and ultralytics load all of theirs so: nothing
    is told. Of MMEngine, detectron2 and Lightning the newest checkpoint alone is told. FSDP's are loaded with it:
    accelerate cannot load what it saves with `LOCAL_STATE_DICT`.
    """
    content = context.content(part)
    if part.role not in _CHECKED or content is None or not content.readable:
        return
    allowed = ALLOWED | (_ARRAYS if part.role is Role.RNG or part.layout == "accelerate" else frozenset())
    allowed |= _SCALARS if part.role in (Role.OPTIMIZER, Role.SCHEDULER, Role.SCALER) else frozenset()
    plain = loaded_without_safety(part)
    own = (*_OWN_LISTS, *_OF_STATES) if plain and part.role is not Role.COMBINED else _OWN_LISTS
    names = [name for name in _globals(part, context) if not name.startswith(own) and not _is_dangerous(name)]
    refused = [name for name in names if name not in allowed]
    protocol = content.facts.get("protocol")
    foreign = content.facts.get("foreign_opcodes") or ()
    late = isinstance(protocol, int) and protocol > 3 and bool(foreign)
    if (not refused and not foreign) or _told_elsewhere(part, context):
        return
    late_title = f"is of pickle protocol {protocol}, which a safe load refuses"
    title = f"names {len(refused):,} object{'' if len(refused) == 1 else 's'} that a safe load refuses"
    yield Hit(
        title if refused else late_title if late else "has opcodes that a safe load refuses",
        part.path,
        detail=(
            *((_listed(refused),) if refused else ()),
            *((f"torch's safe load says: Unsupported operand {foreign[0]}",) if foreign and not late else ()),
            "torch.load with weights_only=True, the default since torch 2.6, stops at this file",
        ),
        severity=Severity.NOTE if plain else None,
        impact=HARMLESS if plain else context.damaged(part),
    )


@rule("CK702", "path-leaves-directory", Severity.ERROR, Part, impact=BREAKS_ALL)
def path_leaves_directory(part: Part, context: Context) -> Iterator[Hit]:
    """An index names a shard by a path that leads out of its directory.

    **Why it matters.** A loader would open that file, whatever it is; no library writes such an index. This tool
    does not follow it.

    **How to repair.** Do not load it. Get the files from a source that you trust.
    """
    content = context.content(part) if part.role is Role.INDEX else None
    value = as_mapping(content.value) if content is not None and content.readable else None
    names = as_mapping((value or {}).get("weight_map")) or {}
    outside = sorted({file for file in names.values() if isinstance(file, str) and leaves_directory(file, part.path)})
    if outside:
        yield Hit(
            "the index names files outside of the directory",
            part.path,
            Spot(key="weight_map"),
            (_listed([repr(name)[:200] for name in outside]), "nothing outside was opened"),
        )


@rule("CK703", "rng-needs-allow-list", Severity.NOTE, Part)
def rng_needs_allow_list(part: Part, context: Context) -> Iterator[Hit]:
    """An rng file holds numpy arrays that some versions of transformers cannot load under torch 2.6 or newer.

    **Why it matters.** The file is fine. transformers up to 4.46 loads it without allowing numpy, which torch 2.6 and
    newer refuse; newer ones allow the names of the numpy that is installed, so that a file of numpy 1 is refused
    under numpy 2.

    **How to repair.** Resume with the versions that wrote it, or move the rng files away: the run goes on, and only
    its randomness differs.
    """
    first = next((other for other in context.view.checkpoint.of(Role.RNG)), None)
    if part.role is not Role.RNG or part != first or part.layout == "accelerate":
        return
    names = set(_globals(part, context)) & _ARRAYS
    version = (context.view.config or {}).get("transformers_version")
    old = isinstance(version, str) and (0, 0) < _release(version) < (4, 47)
    if "numpy.core.multiarray._reconstruct" in names:
        yield Hit(
            "written under numpy 1; under numpy 2 the Trainer refuses it", part.path, detail=(_listed(sorted(names)),)
        )
    elif names and old:
        text = f"transformers {version} cannot load it under torch 2.6 or newer"
        yield Hit(text, part.path, detail=("the file is healthy; newer transformers allow its names themselves",))


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@rule("CK704", "unsafe-record-name", Severity.ERROR, Part, impact=None)
def unsafe_record_name(part: Part, context: Context) -> Iterator[Hit]:
    """A zip record of a torch file has a name that leads out of the directory it would be unpacked in.

    **Why it matters.** torch never unpacks its files, and never writes such a name. Someone else made this one, for
    someone who unpacks it.

    **How to repair.** Do not unpack or load it. Get the file from a source that you trust.
    """
    for hit in relay(part, context, "unsafe-record-name"):
        yield replace(hit, severity=None)


@rule("CK705", "dangerous-global", Severity.ERROR, Part, impact=BREAKS_ALL)
def dangerous_global(part: Part, context: Context) -> Iterator[Hit]:
    """A pickle names something that runs commands, opens files or connections, or loads code.

    **Why it matters.** Loading it without `weights_only=True` runs what it says. No trainer writes such a name.
    Nothing of it was run or imported here.

    **How to repair.** Do not load it, with no option. Get the file from a source that you trust.

    **Known exceptions.** Names that rebuild ordinary objects (`getattr` of enumerations, numpy's `_reconstruct`) are
    not dangerous by themselves and are left to CK701.
    """
    found = [name for name in _globals(part, context) if _is_dangerous(name)]
    if found:
        yield Hit(
            f"the pickle names {found[0]}" + (f" and {len(found) - 1:,} more of the kind" if len(found) > 1 else ""),
            part.path,
            detail=(_listed(found), "loading it without weights_only=True would run it; nothing was run here"),
        )


@rule("CK706", "resource-bomb", Severity.FATAL, Part, impact=None)
def resource_bomb(part: Part, context: Context) -> Iterator[Hit]:
    """The file is built, or damaged, so that reading it would cost far more memory or time than its size is worth.

    **Why it matters.** A few bytes can ask for gigabytes. The file was not read further, so that nothing is known of
    it.

    **How to repair.** Do not load it. Get the file from a source that you trust.
    """
    for hit in relay(part, context, "resource-bomb"):
        yield replace(hit, severity=None)


RULES: tuple[Rule, ...] = (
    pickle_refused,
    path_leaves_directory,
    rng_needs_allow_list,
    unsafe_record_name,
    dangerous_global,
    resource_bomb,
)
