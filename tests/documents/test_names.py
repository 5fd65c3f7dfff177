"""Pages that name functions: each `module:name` of a page exists in the code."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.documents.pages import modules, page

NAME = re.compile(r"(?<![\w/.:])((?:[a-z_]+/)*[a-z_]+):([A-Za-z_]\w*(?:\.\w+)?)")


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Functions, classes, methods and constants of a module."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined(node.body, f"{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def names() -> dict[str, set[str]]:
    """Module → its names; a package counts as its `__init__`."""
    return {path.removesuffix("/__init__"): set(defined(module.body)) for path, module in modules().items()}


@pytest.mark.parametrize("document", ["docs/internals.md", "docs/states.md", "docs/reliability.md"])
def test_every_function_that_is_named_exists(document: str) -> None:
    known = names()
    named = {
        (module, name)
        for module, name in NAME.findall(page(document))
        # Others are keys, such as `worker_scheduler:epoch`; `module:function` explains the notation.
        if ("/" in module or module in known) and name != "function"
    }
    assert sorted(f"{m}:{n}" for m, n in named if n not in known.get(m, ())) == []


def test_the_pages_name_many_functions() -> None:
    assert len(NAME.findall(page("docs/internals.md"))) > 40
    assert len(NAME.findall(page("docs/states.md"))) > 20
