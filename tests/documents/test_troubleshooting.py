"""docs/troubleshooting.md against the code: every error and every log event, and no other."""

import ast
import re
from collections.abc import Iterator

from tests.documents.pages import modules, page, rows, section, template
from worker_scheduler import errors

PAGE = page("docs/troubleshooting.md")
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}


def named(text: str) -> set[str]:
    """What the first cells of the tables name: one code span each."""
    return {row[0].strip("`") for row in rows(text) if row[0].startswith("`")}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for name, module in modules().items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                yield name, node


def events() -> set[str]:
    """The event of each call of a logger; the first argument of `log.warning(…)`."""
    found = set()
    for _, call in calls():
        by_name = isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS
        by_level = isinstance(call.func, ast.Call) and ast.unparse(call.func.func) == "getattr"
        logger = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else "log"
        if call.args and logger == "log" and (by_name or by_level):
            found.add(template(call.args[0]) or ast.unparse(call.args[0]))
    return found


def texts() -> set[str]:
    """The text of each error that an operator can meet, `…` for what differs."""
    found: set[str | None] = set()
    for name, call in calls():
        made = ast.unparse(call.func)
        if made in ERRORS:
            for argument in call.args[:1]:
                items = argument.elts if isinstance(argument, ast.List) else [argument]
                found.update(map(template, items))
        elif made == "ValueError" and name.startswith(("config/", "partition_keys", "plan_token")):
            found.update(map(template, call.args))
        elif made == "fault" or (made == "Finding" and len(call.args) == 3):
            found.add(template(call.args[1]))
        elif made == "faults.append":
            found.update(map(template, call.args))
    for module in modules().values():
        for node in ast.walk(module):
            if isinstance(node, ast.Assign | ast.AugAssign) and "faults" in ast.unparse(node).split(" ")[0]:
                value = node.value.elt if isinstance(node.value, ast.ListComp) else None
                found.add(None if value is None else template(value))
    return {text.replace("`", "") for text in found if text and re.search("[a-z]", text)}


def test_every_log_event_is_explained_and_no_other() -> None:
    assert len(events()) > 20
    assert named(section(PAGE, "Log lines")) == events()


def test_every_error_is_explained_and_no_other() -> None:
    explained = named(PAGE.partition("\n## Log lines\n")[0])
    assert len(texts()) > 50
    assert texts() - explained == set()
    # Put together from parts in config/values.py and cli/check.py.
    composed = {
        "… is not set: give …",
        "…=… …: allowed is …",
        "… is not a variable of the scheduler and is ignored. Did you mean …?",
    }
    assert explained - texts() <= composed <= explained
