"""The fixtures of the tests about configuration."""

import pytest


@pytest.fixture
def urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs that parse; nothing listens there."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/db")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
