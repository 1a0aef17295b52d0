"""Repairs inside the pickles of torch files."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.containers import reader
from ckpt_tools.containers.numpy_values import numpy_array, numpy_scalar_value
from ckpt_tools.containers.pickle_positions import Keys
from ckpt_tools.core.errors import EditRefusedError
from ckpt_tools.edits.overlay import Edited
from ckpt_tools.edits.repair_base import CannotRepairError, Draft, Subject
from ckpt_tools.edits.repair_opcodes import pickle_of, without_arrays
from ckpt_tools.edits.values import Setting, plan_values
from ckpt_tools.edits.zip_patch import edit_zip
from ckpt_tools.model.checkpoint import Role
from ckpt_tools.model.findings import Fix
from ckpt_tools.model.plan import Action
from ckpt_tools.model.values import Opaque, Value, as_mapping


def replace_numpy(fix: Fix, subject: Subject) -> Draft:
    """Plan to write numpy scalars as plain numbers, everywhere in the file; the values stay."""
    view = subject.opened()
    parts = (
        [subject.part(str(fix.params["path"]))]
        if "path" in fix.params
        else list(view.checkpoint.of(Role.OPTIMIZER, Role.SCHEDULER, Role.SCALER))
    )
    settings = []
    for part in parts:
        content = view.content(part)
        for keys, number in _scalars(content.value, (), 0) if content is not None and content.readable else ():
            settings.append(Setting(part, keys, number))
    try:
        planned = plan_values(view, settings)
    except EditRefusedError as error:
        raise CannotRepairError(str(error)) from None
    if not planned.actions:
        raise CannotRepairError("its numpy scalars were not found")
    changes = [(each.part.path, each.key, f"numpy scalar {each.old!r}", each.new) for each in planned.changed]
    return Draft(planned.actions, tuple(changes[:10]))


def _scalars(value: Value, keys: Keys, depth: int) -> Iterator[tuple[Keys, float | int]]:
    """Yield every numpy scalar with the keys that lead to it; tensors and objects are not entered."""
    if depth > 32:
        return
    if isinstance(value, Opaque):
        number = numpy_scalar_value(value)
        if isinstance(number, int | float):
            yield keys, number
            return
    mapping = as_mapping(value)
    items = mapping.items() if mapping is not None else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _scalars(item, (*keys, key), depth + 1)


def portable_rng(fix: Fix, subject: Subject) -> Draft:
    """Plan to write the numpy state of every rng file as plain integers, which any version and numpy can load."""
    view = subject.opened()
    actions: list[Action] = []
    written = []
    for part in view.checkpoint.of(Role.RNG):
        content = view.content(part)
        if content is None or not content.readable or content.problems or content.container != "torch-zip":
            raise CannotRepairError(f"{part.path}: is damaged, or no file of the Trainer")
        arrays = list(_arrays(content.value, 0))
        if not arrays:
            continue
        with view.listing.open(part.path) as source:
            record, data = pickle_of(source, content, part.path)
            made = list(edit_zip(source, part.path, (), {record: without_arrays(data, arrays)}))
            after = reader.read(Edited(source, made), part.containers)
        if not after.readable or after.problems or any("numpy" in name for name in after.globals):
            raise CannotRepairError(f"{part.path}: its state cannot be written in another way")
        if _lists(after.value) != arrays:
            raise CannotRepairError(f"{part.path}: its state would not be the same")
        actions += made
        written.append(part.path)
    if not actions:
        raise CannotRepairError("no rng file holds a numpy array")
    return Draft(tuple(actions), notes=(f"{', '.join(written)}: the same numbers, as integers in place of an array",))


def _arrays(value: Value, depth: int) -> Iterator[list[int]]:
    """Yield the elements of every numpy array of unsigned integers, in the order of the pickle."""
    if isinstance(value, Opaque):
        numbers = _elements(value)
        if numbers is not None:
            yield numbers
            return
    mapping = as_mapping(value)
    items = mapping.values() if mapping is not None else value if isinstance(value, list | tuple) else ()
    for item in items if depth < 8 else ():
        yield from _arrays(item, depth + 1)


def _elements(value: Opaque) -> list[int] | None:
    described = numpy_array(value)
    state = value.state
    if described is None or described[0] != "uint32" or not isinstance(state, tuple) or len(state) < 5:
        return None
    raw = state[4]
    if isinstance(raw, Opaque) and raw.qualname == "_codecs.encode" and raw.args:
        raw = str(raw.args[0]).encode("latin-1")
    if not isinstance(raw, bytes) or len(raw) % 4:
        return None
    return [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]


def _lists(value: Value) -> list[list[int]]:
    """Return the lists of integers of a decoded rng file, where arrays were."""
    state = (as_mapping(value) or {}).get("numpy")
    return [list(item) for item in state if isinstance(item, list)] if isinstance(state, tuple) else []
