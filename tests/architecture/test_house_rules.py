"""The rules of docs/architecture.md, held against the source itself.  Each table says who is excepted."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from tests.architecture.package import Module, dotted, modules

LONGEST_MODULE = 400

# Third-party package -> where it may be imported.  A package that is not listed may not be imported at all.
DOORS: dict[str, tuple[str, ...]] = {
    "click": ("cli/",),
    "tqdm": ("cli/console.py",),
    "tabulate": ("render/text.py", "render/markdown.py"),
    "matplotlib": ("render/png.py",),
    "deepdiff": ("ops/diff",),
    "safetensors": ("ops/probe.py", "ops/convert.py"),
    "numpy": ("numerics/", "ops/probe.py"),
    "ml_dtypes": ("numerics/",),
    "isal": ("numerics/", "core/"),
    "blake3": ("numerics/",),
    "torch": ("ops/probe.py",),
    "transformers": ("integrations/",),
    "accelerate": ("integrations/",),
}
LIGHT_DOORS = frozenset({"click"})

# Functions of ``os`` that touch the machine -> who may call them.  Names that are not listed anywhere are refused.
HARMLESS_OS = frozenset({"path", "fspath", "fsencode", "fsdecode", "PathLike", "strerror", "sep"})
OS_DOORS: dict[str, frozenset[str]] = {
    "core/source.py": frozenset({"open", "close", "fstat", "preadv", "O_RDONLY", "O_CLOEXEC", "O_NONBLOCK"}),
    "core/space.py": frozenset({"statvfs"}),
    "core/listing.py": frozenset({"stat", "lstat", "listdir", "readlink"}),
    "numerics/streaming.py": frozenset({"cpu_count"}),
    "ops/probe.py": frozenset({"write"}),
    "cli/__init__.py": frozenset({"environ"}),
    "cli/console.py": frozenset({"environ", "devnull", "open", "O_WRONLY", "dup2", "close"}),
}
WRITERS = ("core/durable.py", "edits/journal.py")

# ``--load`` starts a child process, which loads files with their own libraries and speaks through its pipes.
PARENT = ("ops/load.py",)
CHILD = ("ops/probe.py",)


def calls(module: Module) -> Iterator[tuple[str, ast.Call]]:
    for node in module.nodes:
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def require(wrong: list[str]) -> None:
    assert not wrong, "\n".join(wrong)


def test_each_third_party_package_has_one_door() -> None:
    wrong = []
    for module in modules():
        for name, node in module.imports():
            top = name.partition(".")[0]
            if top == "ckpt_tools" or top in sys.stdlib_module_names:
                continue
            if not module.inside(*DOORS.get(top, ("nowhere",))):
                wrong.append(module.where(node))
    require(wrong)


def test_heavy_doors_open_inside_functions() -> None:
    wrong = []
    for module in modules():
        if module.inside("numerics/", "integrations/", *CHILD):
            continue  # imported as a whole when it is needed
        top_level = {id(node) for node in module.tree.body}
        for name, node in module.imports(run_time=True):
            top = name.partition(".")[0]
            if top in DOORS and top not in LIGHT_DOORS and id(node) in top_level:
                wrong.append(module.where(node))
    require(wrong)


def test_nothing_in_a_file_is_ever_run() -> None:
    refused_calls = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "_pickle.loads"}
    refused_imports = ("marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "ctypes", "code")
    wrong = []
    for module in modules():
        for name, call in calls(module):
            if name in refused_calls:
                wrong.append(module.where(call))
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(module.where(call))
            if keywords.get("allow_pickle", "False") != "False":
                wrong.append(module.where(call))
        for name, node in module.imports():
            if name.partition(".")[0] in refused_imports or name in {"pickle.load", "pickle.loads", "torch.load"}:
                wrong.append(module.where(node))
            if name.endswith("pickle.Unpickler") and not module.inside("containers/pickle_"):
                wrong.append(module.where(node))
        for node in module.nodes:
            if isinstance(node, ast.Attribute) and node.attr == "Unpickler" and not module.inside("containers/pickle_"):
                wrong.append(module.where(node))
    require(wrong)


def test_the_machine_is_touched_in_few_places() -> None:
    wrong = []
    for module in modules():
        if module.inside(*WRITERS):
            continue
        allowed = HARMLESS_OS | OS_DOORS.get(module.place, frozenset())
        for node in module.nodes:
            if isinstance(node, ast.Attribute) and dotted(node.value) == "os" and node.attr not in allowed:
                wrong.append(module.where(node))
        for name, node in module.imports():
            top = name.partition(".")[0]
            if name.startswith("os.") and not name.startswith("os.path") and name.removeprefix("os.") not in allowed:
                wrong.append(module.where(node))
            if top in {"tempfile", "mmap", "glob", "fileinput"} or name in {
                "pathlib.Path",
                "pathlib.PosixPath",
            }:
                wrong.append(module.where(node))
            if top == "shutil" and not module.inside("cli/console.py"):
                wrong.append(module.where(node))
            if top in {"subprocess", "multiprocessing"} and not module.inside(*PARENT):
                wrong.append(module.where(node))
        for name, call in calls(module):
            last = name.rpartition(".")[2]
            if name in {"open", "io.open", "gzip.open", "codecs.open"} or last in {
                "read_text",
                "read_bytes",
                "write_text",
                "write_bytes",
            }:
                wrong.append(module.where(call))
    require(wrong)


def test_only_the_command_line_speaks_exits_and_looks_around() -> None:
    refused_calls = {"print", "input", "exit", "quit", "os._exit", "breakpoint"}
    refused_attributes = {"exit", "stdout", "stderr", "stdin", "argv"}
    wrong = []
    for module in modules():
        if module.inside("cli/", "__main__.py", *CHILD):
            continue
        for node in module.nodes:
            if isinstance(node, ast.Call) and dotted(node.func) in refused_calls:
                wrong.append(module.where(node))
            if isinstance(node, ast.Attribute) and dotted(node.value) == "sys" and node.attr in refused_attributes:
                wrong.append(module.where(node))
            if isinstance(node, ast.Attribute) and node.attr in {"isatty", "getenv", "environ"}:
                wrong.append(module.where(node))
            if isinstance(node, ast.Name) and node.id == "SystemExit":
                wrong.append(module.where(node))
        for name, node in module.imports():
            if name.partition(".")[0] in {"logging", "warnings"} and not module.inside("integrations/"):
                wrong.append(module.where(node))
    require(wrong)


def test_modules_are_short_and_say_what_they_are() -> None:
    wrong = [f"ckpt_tools/{module.place}: no docstring" for module in modules() if not ast.get_docstring(module.tree)]
    lengths = {module.place: module.text.count("\n") for module in modules()}
    wrong += [f"ckpt_tools/{place}: {length} lines" for place, length in lengths.items() if length > LONGEST_MODULE]
    require(wrong)
