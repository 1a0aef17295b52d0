"""Changes to the JSON of a safetensors header, or to a JSON file, that keep it JSON; and a few that do not."""

from __future__ import annotations

import json
import random
from typing import Any

WORD = 2**64


class Pairs(list):  # type: ignore[type-arg]
    """A JSON object as a list of pairs, so that one name can occur twice."""


class Raw(str):
    """Text that is written as it stands, for numbers and literals that Python would not write."""


def dump(value: Any) -> str:
    match value:
        case Raw():
            return str(value)
        case Pairs():
            return "{" + ",".join(f"{json.dumps(name)}:{dump(item)}" for name, item in value) + "}"
        case list():
            return "[" + ",".join(map(dump, value)) + "]"
        case _:
            return json.dumps(value)


def change(draw: random.Random, data: bytes) -> tuple[str, bytes] | None:
    """Change the header of a safetensors file; the length at the front is put right, the data stays."""
    size = int.from_bytes(data[:8], "little")
    pairs: Pairs = json.loads(data[8 : 8 + size], object_pairs_hook=Pairs)
    tensors = [number for number, (name, _) in enumerate(pairs) if name != "__metadata__"]
    if not tensors:
        return None
    length = len(data) - 8 - size
    action = draw.choice(_HEADER)
    what = action(draw, pairs, draw.choice(tensors), length)
    text = dump(pairs)
    if draw.random() < 0.25:
        wrapped, text = _wrap(draw, text)
        what = f"{what}; {wrapped}"
    raw = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.7:
        raw += b" " * (-len(raw) % 8)
    return what, len(raw).to_bytes(8, "little") + raw + data[8 + size :]


def _wrap(draw: random.Random, text: str) -> tuple[str, str]:
    front, back = draw.choice(
        (
            *((" ", ""), ("\n\t ", ""), ("", "\n"), ("", "\0"), ("", "\0" * 8), ("\ufeff", ""), ("", "{}"), ("[", "]")),
            *(("", ","), ("", "}"), ("", " x"), ("//c\n", ""), ("\0", "")),
        )
    )
    return f"{front!r} before and {back!r} after", front + text + back


def _field(pairs: Pairs, at: int, name: str) -> tuple[Pairs, int]:
    entry = pairs[at][1]
    return entry, next(number for number, (key, _) in enumerate(entry) if key == name)


_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2**31, 2**53, 2**63, WORD - 1, WORD, 10**30, Raw("2.0"), Raw("1e2"), Raw("-0"), Raw("1E0"), Raw("00")),
    *(Raw("NaN"), Raw("0.0"), True, None, "8", [], Raw("Infinity"), Raw("1e400"), Raw("-0.0")),
)


def _shape(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    entry, field = _field(pairs, at, "shape")
    shape = list(entry[field][1])
    match draw.randrange(7):
        case 0:
            shape = [*shape, 1]
        case 1:
            shape = shape[::-1]
        case 2:
            shape = shape[1:]
        case 3:
            shape = [draw.choice(_NUMBERS), *shape[1:]]
        case 4 if shape:
            shape[0] = shape[0] + draw.choice((1, -1))
        case 5:
            shape = [1] * draw.choice((8, 64, 100)) + shape
        case _:
            new: Any = draw.choice(
                (None, 5, "8", Pairs(), [[8]], [8, "8"], [WORD // 2, 2], [0, WORD - 1], [WORD - 1, 2])
            )
            entry[field] = ("shape", new)
            return f"shape of {pairs[at][0]} is {dump(new)}"
    entry[field] = ("shape", shape)
    return f"shape of {pairs[at][0]} is {dump(shape)}"


_DTYPES = (
    *(
        "F64",
        "F32",
        "F16",
        "BF16",
        "I64",
        "I32",
        "I16",
        "I8",
        "U64",
        "U32",
        "U16",
        "U8",
        "BOOL",
        "C64",
        "F4",
        "F6_E2M3",
    ),
    *(
        "F6_E3M2",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "C128",
        "F128",
        "f32",
        "F99",
        "",
        "F32 ",
    ),
)


def _dtype(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    entry, field = _field(pairs, at, "dtype")
    new: Any = draw.choice((*_DTYPES, *_DTYPES, None, 32, ["F32"], True, Pairs([("F32", None)])))
    entry[field] = ("dtype", new)
    return f"dtype of {pairs[at][0]} is {dump(new)}"


def _offsets(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    entry, field = _field(pairs, at, "data_offsets")
    begin, end = entry[field][1]
    step = draw.choice((1, 4, -4, 8, end - begin))
    new: Any = draw.choice(
        (
            *([begin + step, end + step], [begin, end + step], [begin + step, end], [end, begin], [begin], []),
            *([begin, end, end], [begin, draw.choice(_NUMBERS)], [draw.choice(_NUMBERS), end], [0, end - begin]),
            *([length, length + end - begin], [length - end + begin, length], None, "0-4", Pairs([("begin", begin)])),
        )
    )
    entry[field] = ("data_offsets", new)
    return f"data_offsets of {pairs[at][0]} are {dump(new)}"


def _name(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    name, entry = pairs[at]
    others = [other for other, _ in pairs]
    new = draw.choice(
        ("", f"{name}.x", "é", "a\0b", "\ud800", "x" * 5000, "__metadata__", draw.choice(others), "../up", "a\nb")
    )
    pairs[at] = (new, entry)
    return f"{name} renamed {new[:20]!r}"


def _twice(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    name, entry = pairs[at]
    other: Any = Pairs(entry)
    if draw.random() < 0.6:
        other = draw.choice(
            (Pairs([*entry[:2], ("data_offsets", [0, 0])]), Pairs(), None, Pairs([("dtype", "F99"), *entry[1:]]))
        )
    pairs.insert(draw.choice((0, at, at + 1, len(pairs))), (name, other))
    return f"{name} named twice"


def _metadata(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    new: Any = draw.choice(
        (
            *(None, [], "pt", 1, Pairs(), Pairs([("format", 1)]), Pairs([("format", None)]), Pairs([("format", "tf")])),
            *(Pairs([("format", Pairs())]), Pairs([("format", "pt"), ("format", "np")]), Pairs([("format", "\ud800")])),
            *(
                Pairs([("", "")]),
                Pairs([("k" * 100_000, "v")]),
                Pairs([("format", ["pt"])]),
                Raw('{"format":"\\u00e9"}'),
            ),
        )
    )
    rest = [pair for pair in pairs if pair[0] != "__metadata__"]
    copies = draw.choice((0, 1, 1, 1, 1, 2))
    pairs[:] = [("__metadata__", new)] * copies + rest
    if draw.random() < 0.2:
        pairs.reverse()
    return f"__metadata__ {copies} times, {dump(new)[:40]}"


def _entry(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    name, entry = pairs[at]
    match draw.randrange(6):
        case 0:
            del pairs[at]
            return f"{name} left out"
        case 1:
            new = draw.choice((None, [], "F32", 1, Pairs(), [entry]))
            pairs[at] = (name, new)
            return f"entry of {name} is {dump(new)[:40]}"
        case 2:
            gone = draw.randrange(len(entry))
            field = entry.pop(gone)[0]
            return f"{field} of {name} left out"
        case 3:
            entry.append(draw.choice(list(entry)))
            return f"{entry[-1][0]} of {name} given twice"
        case 4:
            extra: Any = draw.choice(
                (1, None, "x", Pairs([("a", [1])]), Raw("[" * 200 + "]" * 200), Raw("1e999"), Raw('"\\ud800"'))
            )
            entry.insert(draw.choice((0, len(entry))), ("extra", extra))
            return f"a further field {dump(extra)[:20]} in {name}"
        case _:
            draw.shuffle(pairs)
            return "entries in another order"


def _more(draw: random.Random, pairs: Pairs, at: int, length: int) -> str:
    place = draw.choice((0, length, length // 2, length + 1))
    shape = draw.choice(([0], [0, 3], [1], []))
    size = 0 if 0 in shape else 4
    new = Pairs([("dtype", "F32"), ("shape", shape), ("data_offsets", [place, place + size])])
    pairs.insert(draw.choice((0, at, len(pairs))), ("added", new))
    return f"a tensor of shape {shape} added at {place}"


_HEADER = (_shape, _dtype, _offsets, _name, _twice, _metadata, _entry, _more)


def change_json(draw: random.Random, data: bytes) -> tuple[str, bytes] | None:
    """Change a JSON file as an editor, a merge tool or a bad copy would."""
    text = data.decode()
    match draw.randrange(6):
        case 0:
            what, text = _wrap(draw, text)
        case 1:
            at = draw.randrange(len(text))
            mark = draw.choice(("{", "}", "[", "]", ",", ":", '"', "'", "#", "//", "NaN", "0", "\\", "\n", "\t", "é"))
            what, text = f"{mark!r} put in at {at}", text[:at] + mark + text[at:]
        case 2:
            mark = draw.choice([each for each in '{}[],:"' if each in text])
            places = [at for at, each in enumerate(text) if each == mark]
            at = draw.choice(places)
            what, text = f"{mark!r} at {at} left out", text[:at] + text[at + 1 :]
        case 3:
            what, text = "single quotes", text.replace('"', "'")
        case 4:
            what, text = "True for true", text.replace("true", "True").replace("false", "False").replace("null", "None")
        case _:
            encoding = draw.choice(("utf-16", "utf-8-sig", "utf-16-le", "utf-32"))
            return f"saved as {encoding}", text.encode(encoding)
    return what, text.encode()
