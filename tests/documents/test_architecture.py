"""docs/architecture.md against the code: packages, modules and layers."""

import re
import tomllib

from tests.documents.pages import PACKAGE, ROOT, page, rows, section

PAGE = page("docs/architecture.md")


def test_every_package_has_a_paragraph_and_no_other() -> None:
    packages = {
        str(folder.relative_to(PACKAGE))
        for folder in (init.parent for init in PACKAGE.rglob("__init__.py"))
        if folder != PACKAGE and folder.name != "versions"
    }
    assert set(re.findall(r"^### `([\w/]+)`$", PAGE, re.MULTILINE)) == packages


def test_every_module_beside_the_packages_is_named() -> None:
    table = section(PAGE, "Other modules")
    modules = {file.name for file in PACKAGE.glob("*.py") if not file.name.startswith("__")}
    assert modules - set(re.findall(r"`(\w+\.py)`", table)) == set()


def test_every_module_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", PAGE))
    assert len(named) > 40
    assert {path for path in named if not any((base / path).exists() for base in (ROOT, PACKAGE))} == set()


def test_the_picture_has_every_layer_from_the_top_down() -> None:
    (contract,) = (
        contract
        for contract in tomllib.loads(page("pyproject.toml"))["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    picture = re.findall(r"\w+", section(PAGE, "The picture").partition("```")[2])
    layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    lines = [max(picture.index(module) for module in layer) for layer in layers]
    assert lines == sorted(lines)


def test_the_glossary_is_in_order() -> None:
    words = [row[0] for row in rows(section(PAGE, "Glossary"))][1:]
    assert words == sorted(words)
    assert len(words) == len(set(words))
