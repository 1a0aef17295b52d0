"""The documents say what the package is, and nothing that it is not."""

from __future__ import annotations

import re
import tomllib

import pytest

from ckpt_tools.cli.app import COMMANDS, ckpt
from tests.architecture.package import REPOSITORY, folders

DRAWING = REPOSITORY / "docs" / "architecture.md"


def names_in(row: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", row))


def layers() -> list[frozenset[str]]:
    """The rows of the import-linter contract, from the top down."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [names_in(row) for row in contract["layers"]]


def test_every_package_has_its_layer() -> None:
    assert frozenset().union(*layers()) == folders()


def test_the_drawing_is_the_contract() -> None:
    (line,) = (line for line in DRAWING.read_text(encoding="utf-8").splitlines() if line.count("─▶") > 2)
    assert [names_in(row) for row in line.split("─▶")] == layers()


def test_the_tree_shows_every_package() -> None:
    tree = re.findall(r"^[├└]── (\w+)/", DRAWING.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(tree) == sorted(folders())


def test_every_command_has_its_page_and_every_page_its_command() -> None:
    pages = {path.stem for path in (REPOSITORY / "docs" / "commands").glob("*.md")} - {"index", "README"}
    assert pages == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_page_of_its_command(name: str) -> None:
    import click

    command = ckpt.get_command(click.Context(ckpt), name)
    assert command is not None
    page = (REPOSITORY / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    options = [p for p in command.params if isinstance(p, click.Option)]
    missing = [p.opts for p in options if not any(f"`{word}" in page for word in p.opts)]
    assert missing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_in_the_table_of_a_page_exists(name: str) -> None:
    import click

    command = ckpt.get_command(click.Context(ckpt), name)
    assert command is not None
    page = (REPOSITORY / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`--?[a-z].*?) \| ", page, re.MULTILINE)
    written = {word for row in rows for word in re.findall(r"`(--?[a-z-]+)", row)}
    assert written - {word for p in command.params for word in p.opts} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    import click

    command = ckpt.get_command(click.Context(ckpt), name)
    assert command is not None
    assert command.help
    assert "Exit codes" in command.help
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_every_layout_is_on_its_page() -> None:
    from ckpt_tools.layouts import LAYOUTS

    page = (REPOSITORY / "docs" / "layouts.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) | set(
        re.findall(r"^\| `([\w-]+)` \(1\)", page, re.MULTILINE)
    )
    assert rows == {layout.name for layout in LAYOUTS}


def test_every_command_that_is_named_exists() -> None:
    import click

    named = re.compile(r"(?:`|[\"'(] ?|\$ )ckpt ([a-z][a-z-]+)((?: [^`\"'\n)]*)?)")
    pages = (*(REPOSITORY / "ckpt_tools").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md")
    wrong = []
    found = 0
    for page in pages:
        for name, rest in named.findall(page.read_text(encoding="utf-8")):
            command = ckpt.get_command(click.Context(ckpt), name)
            known = {word for p in command.params for word in p.opts} if command is not None else set()
            options = re.findall(r"(?<= )--[a-z][a-z-]+", rest.split(" && ")[0])
            found += 1
            if command is None or not known.issuperset({*options} - {"--help"}):
                wrong.append(f"{page.name}: ckpt {name}{rest}")
    assert found > 100
    assert wrong == []
