"""`@FILE`: whatever the file is, its items are read within bounds, or one line says why not."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.users import make_users, user_id
from worker_scheduler.cli import item_files
from worker_scheduler.cli.item_files import with_files_read
from worker_scheduler.errors import BadInput

Scheduler = Callable[..., Outcome]
ONE, TWO = str(user_id(1)), str(user_id(2))


def items(path: Path) -> list[str] | None:
    return with_files_read("--user-ids", [f"@{path}"])


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        items(path)
    line = str(caught.value)
    assert line.startswith(f"--user-ids='@{str(path)[:40]}")
    assert line.isprintable()
    return line


@pytest.mark.parametrize(
    "content",
    [
        f"{ONE}\n{TWO}\n".encode(),
        f"{ONE}\r\n{TWO}\r\n".encode(),
        f"{ONE}\r{TWO}".encode(),
        f"\ufeff{ONE}\n{TWO}".encode(),
        f"\ufeff{ONE},\r\n\r\n  {TWO}  \n".encode(),
    ],
)
def test_a_file_of_any_editor(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(content)
    assert items(tmp_path / "ids") == [ONE, TWO]


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty", "/dev/stdin", "/proc/self/fd/0"])
def test_a_device_is_refused_at_once(device: str) -> None:
    if Path(device).exists() and not Path(device).is_file():
        with pytest.raises(BadInput, match="cannot be read"):
            items(Path(device))


def test_a_pipe_is_refused_at_once_whether_or_not_somebody_writes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").endswith("it is not a regular file")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(ONE.encode(),))
    writer.start()
    writer.join(10)
    assert refusal(tmp_path / "pipe").endswith("it is not a regular file")
    os.close(reader)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_files, "MAX_BYTES", 2**20)
    with (tmp_path / "ids").open("wb") as file:
        file.truncate(2**20 + 1)
    assert refusal(tmp_path / "ids").endswith("it has more than 1 MiB")
    with (tmp_path / "ids").open("wb") as file:
        file.truncate(2**40)
    assert refusal(tmp_path / "ids").endswith("it has more than 1 MiB")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_named_or_refused(encoding: str, tmp_path: Path) -> None:
    text = "\ufeffé" if encoding == "utf-16-le" else "é"
    (tmp_path / "ids").write_bytes(text.encode(encoding))
    said = refusal(tmp_path / "ids")
    assert "it is UTF-16, save it as UTF-8" in said or "is not UTF-8" in said


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "none", tmp_path / "loop", tmp_path / ("n" * 300), tmp_path / "a\nb"):
        refusal(path)
    with pytest.raises(BadInput):
        with_files_read("--user-ids", ["@"])
    with pytest.raises(BadInput):
        with_files_read("--user-ids", ["@a\0b"])


@pytest.mark.parametrize(("option", "value"), [("--user-ids", ONE), ("--github-logins", "user-1")])
@pytest.mark.parametrize("invisible", ["\u200b", "\ufeff", "\u00a0", "\u2060", "\u00ad", "\x85"])
def test_an_invisible_character_of_an_item_is_shown(
    option: str, value: str, invisible: str, scheduler: Scheduler, ledger: Ledger, tmp_path: Path
) -> None:
    make_users(ledger.url, 1)
    odd = f"{value[:4]}{invisible}{value[4:]}"
    (tmp_path / "items").write_text(f"{value}\n{odd}\n", encoding="utf-8")
    for given in (f"{option}={odd}", f"{option}=@{tmp_path / 'items'}"):
        outcome = scheduler("backfill", "--backfill-days=1", "--dry-run", given)
        assert outcome.status == 2
        assert (
            f"has the item '{value[:4]}{ascii(invisible)[1:-1]}{value[4:]}', which is not" in outcome.error
        )
        assert outcome.error.isprintable()
