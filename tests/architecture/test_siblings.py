"""Files that stand for one thing each (a layout, a container, a format, a rule family, a verb) are strangers."""

from __future__ import annotations

import re

import pytest

from tests.architecture.package import modules

# For each package, the modules that its own files may import.  They and ``__init__`` may import any of the package.
SHARED = {
    "layouts": r"base|claims|match\w*|view|tracking|assembly\w*",
    "containers": r"base|reader|kinds|pickle_\w+|torch_values|torch_\w+_\w+|safetensors_\w+|zip_directory|dcp_\w+",
    "render": r"base",
    "rules": r"base",
    "cli": r"(?!cmd_)\w+",
}


@pytest.mark.parametrize("folder", SHARED)
def test_files_of_one_package_do_not_import_each_other(folder: str) -> None:
    shared = re.compile(rf"({SHARED[folder]})\Z")
    prefix = f"ckpt_tools.{folder}"
    wrong = []
    for module in modules():
        if module.folder != folder or module.stem == "__init__" or shared.match(module.stem):
            continue
        for name, node in module.imports():
            if name != prefix and not name.startswith(f"{prefix}."):
                continue
            target = name.removeprefix(prefix).lstrip(".").partition(".")[0]
            if not shared.match(target):
                wrong.append(module.where(node))
    assert not wrong, "\n".join(wrong)
