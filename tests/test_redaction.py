"""What looks like a secret is masked, in every form that error texts have; ordinary words stay."""

import time
import unicodedata

import pytest

from worker_scheduler.redaction import escape_control_characters, mask_passwords, one_line, show

SECRET = "hunter2"

FORMS = [
    *('api_key="hunter2"', "password: hunter2", "{'password': 'hunter2'}", "Bearer hunter2", "pwd:hunter2"),
    *('{"token":"hunter2","user":"bob"}', '{"api-key" : "hunter2"}', r"{\"password\": \"hunter2\"}"),
    *(r'{"secret": "a\"hunter2"}', r"passwd='it\'s hunter2'", "secret => 'hunter2'", "password := hunter2"),
    *("{'password': b'hunter2'}", "('password', 'hunter2')", "config['password'] = 'hunter2'"),
    *('password="hunter2', "password=ab'hunter2", "password=a,hunter2", "passphrase = hunter2"),
    *(
        "PASSWORD=hunter2",
        "DB_PASS=hunter2",
        "PGPASSWORD=hunter2 psql",
        "AWS_SECRET_ACCESS_KEY=a/hunter2+b",
    ),
    *("pw=hunter2", "jwt: hunter2", "passcode=hunter2", "signing_key=hunter2", "bearer: hunter2"),
    *("apiKey: 'hunter2'", "secretKey=hunter2", "client_secret: hunter2, x", "x-api-key: hunter2"),
    *("Authorization: Basic dXNlcjpodW50ZXIyhunter2", "Authorization: Bearer hunter2", "bearer hunter2"),
    *(
        '[("Authorization", "Bearer hunter2")]',
        "Proxy-Authorization: Negotiate hunter2==",
        "Cookie: hunter2",
    ),
    *(
        "ftp://bob:hunter2@h/x",
        "redis://:it'shunter2@h/0",
        "x+y.z-1://bob:a/hunter2@h",
        "bob:hunter2@h:5432",
    ),
    *(
        "https://h/?token=hunter2&x=1",
        "https://h/?x=1&key=hunter2",
        "https://h/?sig=hunter2",
        "?access_token=hunter2",
    ),
    *("--password hunter2 -x", "--api-key=hunter2", "<password>hunter2</password>", "password=\n  hunter2"),
    *('credentials: {"user": "bob", "value": "hunter2"}', '"tokens": 1, "token": ["hunter2", "b"]'),
    *(
        'password: "two\nlines hunter2"',
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    ),
]


@pytest.mark.parametrize("text", FORMS)
def test_a_secret_is_masked(text: str) -> None:
    masked = mask_passwords(text)
    assert SECRET not in masked
    assert "***" in masked
    assert mask_passwords(masked).count("***") == masked.count("***")


@pytest.mark.parametrize(
    "text",
    [
        *("ghp_" + "a" * 36, "github_pat_" + "a1_" * 20, "xoxb-123456789012-abc", "AKIAIOSFODNN7EXAMPLE"),
        *("sk_live_" + "a1" * 12, "sk-ant-" + "a-1" * 12, "glpat-" + "a1" * 10, "AIza" + "a_1" * 12),
        *("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "Basic dXNlcjpodW50ZXIy"),
    ],
)
def test_a_secret_that_is_known_by_its_form_is_masked(text: str) -> None:
    assert text.removeprefix("Basic ") not in mask_passwords(f"refused: {text}")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "password: is missing",
            "password is missing",
            "invalid token: unexpected end of file",
            "tokens: 5",
        ),
        *('password authentication failed for user "bob"', "Bearer token expired", "bearer of bad news"),
        *(
            "basic authentication failed",
            "Basic requirements",
            "the token was revoked",
            "KeyError: 'password'",
        ),
        *(
            "https://h/path?page=2",
            "see https://h/@bob/",
            "at 12:30 in a:b",
            "key=5",
            "bypass: 3",
            "passed: 7",
        ),
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    # A user's page has its "@" behind a slash, as a password may have it: it is masked.
    assert mask_passwords(text).replace("***", "h/") == text


def test_what_is_beside_a_secret_stays() -> None:
    assert mask_passwords('{"token": "x", "user": "bob"}') == '{"token": "***", "user": "bob"}'
    assert mask_passwords('["amqp://u:p@h", "x@y"]') == '["amqp://***@h", "x@y"]'
    assert mask_passwords("host=h password=x user=bob") == "host=h password=*** user=bob"
    assert mask_passwords("https://h/?token=x&page=2") == "https://h/?token=***&page=2"


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a.",
            "://",
            "://@",
            "password=",
            'password="',
            "password: ",
            "basic ",
            "bearer ",
            "bearer :",
            "a-",
            "password",
        ),
        *(
            "x@",
            'password=\\"',
            "-----BEGIN PRIVATE KEY-----",
            "--",
            "--secret ",
            "eyJaaaaaaaaa.",
            "<token>",
        ),
        *(
            "token" + " " * 500,
            "token" + "\\" * 100,
            "token: '",
            '"',
            "\\",
            'secret: {"',
            "a:b",
            "Aa1+/",
            "a:",
        ),
    ],
)
def test_a_long_text_takes_no_longer_than_its_length_demands(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    mask_passwords(text)
    assert time.process_time() - started < 10  # 0.3 to 1 s on an idle machine


INVISIBLE = [
    *("\u200b", "\ufeff", "\u00ad", "\u2060", "\u180e", "\u00a0", "\u3000", "\u2800", "\u3164", "\u034f"),
    *("\u202e", "\u2066", "\ufe0f", "\U000e0041", "\x7f", "\x85", "\udcff"),
]


@pytest.mark.parametrize("character", INVISIBLE)
def test_what_cannot_be_seen_is_shown_by_its_number(character: str) -> None:
    shown = show(f"octo{character}cat")
    assert shown == f"'octo{ascii(character)[1:-1]}cat'"
    assert shown.isprintable()


def test_every_character_of_format_and_every_other_blank_is_escaped() -> None:
    for number in range(0x110000):
        character = chr(number)
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"} and character != " ":
            # Marks that are seen, such as the Arabic number sign, may stay.
            visible = 0x600 <= number <= 0x605 or number in {
                0x6DD,
                0x70F,
                0x890,
                0x891,
                0x8E2,
                0x110BD,
                0x110CD,
            }
            visible = visible or 0x13440 <= number <= 0x1345F
            assert visible or escape_control_characters(character) != character, hex(number)


def test_letters_and_signs_of_every_language_stay() -> None:
    for text in ("naïve Ökonomie", "Привет", "日本語", "עברית", "مرحبا", "€ … ☃", "a b"):
        assert escape_control_characters(text) == text


def test_an_error_whose_text_cannot_be_made_is_still_one_line() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert one_line(Unprintable()) == "(its text cannot be shown)"
