"""`--users-file`: what a file may look like, and what is said about one that cannot be read."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome, as_process
from tests.support.ledger import Ledger
from tests.support.users import github_login, make_users, user_id
from worker_scheduler.cli import users_file
from worker_scheduler.cli.users_file import read_users
from worker_scheduler.errors import BadInput
from worker_scheduler.named_users import NamedUsers

Scheduler = Callable[..., Outcome]
ONE, TWO = user_id(1), user_id(2)


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "users"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def named(folder: Path, content: str | bytes) -> tuple[list[object], list[str]]:
    users = read_users([written(folder, content)])
    return [i for some in users.ids(3) for i in some], [name for some in users.logins(3) for name in some]


def refusal(path: str) -> str:
    with pytest.raises(BadInput) as caught:
        read_users([path])
    line = str(caught.value)
    assert line.startswith("--users-file='")
    assert line.isprintable()
    return line


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 64 * 2**10])
@pytest.mark.parametrize(
    "content",
    [
        f"{ONE}\noctocat\n{TWO}\nhubot\n",
        f"{ONE}\r\noctocat\r\n{TWO}\r\nhubot",
        f"{ONE}\roctocat\r{TWO}\rhubot\r",
        f"\ufeff{ONE},octocat,{TWO},hubot",
        f"\ufeff# the users, of #42\r\n{ONE} # first, one\r\n\r\n  octocat ,\t{TWO},\n,\nhubot#\n#",
        f"{str(ONE).upper()}\n{TWO.hex}\noctocat\nhubot",
    ],
)
def test_a_file_of_any_editor(
    content: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_file, "_BLOCK_BYTES", block_bytes)
    assert named(tmp_path, content) == ([ONE, TWO], ["octocat", "hubot"])


def test_logins_need_not_be_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_file, "_BLOCK_BYTES", 1)
    assert named(tmp_path, "élodie\n李雷") == ([], ["élodie", "李雷"])


def test_several_files_are_one_choice(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("hubot")
    users = read_users([written(tmp_path, "octocat"), str(tmp_path / "more")])
    assert list(users.logins(10)) == [["octocat", "hubot"]]


@pytest.mark.parametrize("content", ["", "\n\n", "# nobody\n", ",,\n , \n", "\ufeff"])
def test_a_file_that_names_nobody_never_means_everybody(content: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, content)).endswith("there is no id and no login in it")


@pytest.mark.parametrize("before", ["", "\ufeff", "octocat\n" * 10_000])
@pytest.mark.parametrize("block_bytes", [3, 64 * 2**10])
def test_what_is_not_utf_8_is_named_by_its_place(
    before: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_file, "_BLOCK_BYTES", block_bytes)
    path = written(tmp_path, before.encode() + b"ab\xe9cd")
    assert refusal(path).endswith(f"byte {len(before.encode()) + 2} is not UTF-8")


def test_utf_16_is_named(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, "octocat".encode("utf-16"))).endswith("it is UTF-16, save it as UTF-8")


def test_an_item_that_can_be_no_login_is_named_with_its_line(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "one\r\n# two\r\nthr\u200bee\r\nfour"))
    assert said.endswith(r"line 3 has the item 'thr\u200bee', which is not a valid login")
    assert "line 2 has an item of more than 1000" in refusal(written(tmp_path, "one\n" + "x" * 1001))


def test_a_file_without_an_end_is_refused_at_once() -> None:
    assert refusal("/dev/zero").endswith("has an item of more than 1000 characters")


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "none", tmp_path / "loop", tmp_path / ("n" * 300), tmp_path / "a\nb"):
        refusal(str(path))
        refusal(f"@{path}")
    refusal("")
    refusal("a\0b")


def test_a_path_with_at_sign_is_understood(tmp_path: Path) -> None:
    path = written(tmp_path, "octocat")
    assert refusal(f"@{path}").endswith(f"did you mean '{path}', without @?")


def test_a_disk_without_space_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: NamedUsers, login: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(NamedUsers, "add_login", full)
    assert refusal(written(tmp_path, "octocat")).endswith("No space left on device")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"octocat\n",))
    writer.start()
    assert list(read_users([str(tmp_path / "pipe")]).logins(10)) == [["octocat"]]
    writer.join(10)


def test_standard_input_is_read(environment: dict[str, str], ledger: Ledger) -> None:
    make_users(ledger.url, 5)
    command = [sys.executable, "-m", "worker_scheduler", "backfill", "--backfill-days", "1"]
    ended = subprocess.run(
        [*command, "--users-file", "-", "--json"],
        env=environment,
        input=f"{user_id(2)}\n{github_login(4)}\n".encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert {job["github_login"] for job in ledger.jobs()} == {"user-2", "user-4"}


def test_empty_standard_input_is_refused(environment: dict[str, str]) -> None:
    outcome = as_process(environment, "backfill", "--backfill-days", "1", "--users-file", "-")
    assert (outcome.status, outcome.error) == (2, "--users-file='-': there is no id and no login in it")


def test_a_path_without_at_sign_is_asked_about(
    scheduler: Scheduler, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 2)
    (tmp_path / "ids.txt").write_text(str(ONE))
    (tmp_path / "logins").write_text("user-1")
    monkeypatch.chdir(tmp_path)
    for option, value, status in (
        ("--user-ids", "ids.txt", 2),
        ("--github-logins", "logins", 3),
        ("--exclude-logins", "logins", 3),
    ):
        outcome = scheduler("backfill", "--backfill-days", "1", option, value)
        assert outcome.status == status
        assert outcome.error.endswith(f"did you mean {option} '@{value}'?")
    assert ledger.count() == 0


def test_a_user_who_is_called_like_a_file_is_a_user(
    scheduler: Scheduler, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 2)
    (tmp_path / "user-1").write_text("user-2")
    monkeypatch.chdir(tmp_path)
    assert scheduler("backfill", "--backfill-days", "1", "--github-logins", "user-1").status == 0
    assert {job["github_login"] for job in ledger.jobs()} == {"user-1"}
