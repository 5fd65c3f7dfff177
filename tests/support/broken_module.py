"""A handler's module that does not import."""

raise RuntimeError("no\nkey")
