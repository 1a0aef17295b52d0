"""Changes to the records of a torch zip; the zip itself is written anew and is right in all other respects."""

from __future__ import annotations

import io
import random
import warnings
import zipfile
from collections.abc import Callable


def unpack(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Return the root directory and the records below it, in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        root = names[0].split("/", 1)[0]
        return root, {name.removeprefix(f"{root}/"): _raw(archive, name) for name in names}


def _raw(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a record whose checksum may be switched off."""
    with archive.open(name) as file:
        file._expected_crc = None  # type: ignore[attr-defined]
        return file.read()


def pack(root: str, members: list[tuple[str, bytes]], compressed: frozenset[str] = frozenset()) -> bytes:
    """Write a torch zip; a name that begins with ``/`` is written without the root."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, payload in members:
            info = zipfile.ZipInfo(name[1:] if name.startswith("/") else f"{root}/{name}")
            archive.writestr(info, payload, zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED)
    return stream.getvalue()


Members = list[tuple[str, bytes]]


def change(draw: random.Random, data: bytes) -> tuple[str, bytes] | None:
    root, found = unpack(data)
    members = list(found.items())
    at = draw.randrange(len(members))
    return draw.choice(_CHANGES)(draw, root, members, at)


def _drop(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    return f"record {members[at][0]} left out", pack(root, members[:at] + members[at + 1 :])


def _rename(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    name, payload = members[at]
    new = draw.choice(
        (f"{name}x", "data/77", name.upper(), name.replace("/", "\\"), f"sub/{name}", f"/{name}", f"/other/{name}")
    )
    members[at] = (new, payload)
    return f"record {name} renamed {new}", pack(root, members)


def _resize(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    name, payload = members[at]
    new = draw.choice((b"", payload[:-1], payload[: len(payload) // 2], payload + b"\0", payload * 2))
    members[at] = (name, new)
    return f"record {name} has {len(new)} bytes instead of {len(payload)}", pack(root, members)


def _compress(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    chosen = draw.choice((frozenset({members[at][0]}), frozenset({"data.pkl"}), frozenset(name for name, _ in members)))
    return f"compressed: {', '.join(sorted(chosen))[:60]}", pack(root, members, chosen)


def _double(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    name, payload = members[at]
    new = draw.choice((payload, bytes(len(payload)), payload[:-1], b""))
    members.insert(draw.randint(0, len(members)), (name, new))
    return f"record {name} twice, the other with {len(new)} bytes", pack(root, members)


def _small(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    name, values = draw.choice(_SMALL)
    value = draw.choice(values)
    rest = [member for member in members if member[0] != name]
    return f"record {name} says {value!r}", pack(root, [*rest, (name, value)])


def _extra(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    name = draw.choice(_EXTRA)
    members.insert(draw.choice((0, len(members))), (name, b"" if name.endswith("/") else b"extra"))
    return f"record {name!r} added", pack(root, members)


def _shuffle(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    draw.shuffle(members)
    return "records in another order", pack(root, members)


def _reroot(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    new = draw.choice(("archive", "a/b", "x y", "é", "..", "ckpt" * 40, ""))
    return f"root renamed {new!r}", pack(new, members)


def _pickle_tail(draw: random.Random, root: str, members: Members, at: int) -> tuple[str, bytes]:
    index = next(number for number, (name, _) in enumerate(members) if name == "data.pkl")
    payload = members[index][1]
    new = draw.choice((payload + b"junk", payload[:-1], payload[: draw.randrange(len(payload))], b"\0" + payload))
    members[index] = ("data.pkl", new)
    return f"data.pkl has {len(new)} bytes instead of {len(payload)}", pack(root, members)


_SMALL = (
    (
        "version",
        (
            b"0",
            b"1",
            b"2",
            b"3",
            b"10",
            b"11",
            b"99",
            b"-1",
            b"x",
            b"",
            b" 3",
            b"3\n\n",
            b"3 4",
            b"3.0",
            b"03",
            b"3x",
            b"\xff",
        ),
    ),
    ("byteorder", (b"little", b"big", b"", b"little\n", b"Little", b"middle", b"\xff")),
    (".format_version", (b"1", b"2", b"", b"x")),
    (".storage_alignment", (b"1", b"64", b"", b"x", b"-5")),
    (".data/serialization_id", (b"", b"0", b"x" * 40)),
)
_EXTRA = (
    *(
        "data/99",
        "extra",
        "constants.pkl",
        "code/x.py",
        "/loose",
        "/other/thing",
        "",
        "data/",
        "/elsewhere/",
        "nested/data.pkl",
    ),
    *("../up", "data/-1", "attributes.pkl", ".hidden"),
)
_CHANGES: tuple[Callable[[random.Random, str, Members, int], tuple[str, bytes]], ...] = (
    *(_drop, _rename, _resize, _compress, _double, _small, _small, _extra, _shuffle, _reroot, _pickle_tail),
)
