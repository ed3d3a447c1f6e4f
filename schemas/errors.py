"""What can be wrong with a record: each error says what was given, what was expected and what to do."""

from __future__ import annotations


class WireError(Exception):
    """Base of everything that makes bytes or JSON unusable as a record."""


class MalformedRecord(WireError):
    """The bytes are not a record: no known framing, cut short, or trailing garbage."""


class UnknownSchema(WireError):
    """The framing is ours, but nobody here has the schema it names."""


class OversizedRecord(WireError):
    """The record, or one of its fields, is larger than its bound. Nothing is ever cut in silence."""


class InvalidRecord(WireError):
    """A well-formed record that breaks a rule. `field` is the dotted name of the field at fault."""

    def __init__(self, field: str, given: object, expected: str) -> None:
        self.field = field
        self.given = given
        self.expected = expected
        shown = repr(given)
        if len(shown) > 120:
            shown = f"{shown[:100]}… ({len(shown)} characters)"
        super().__init__(f"{field}: got {shown}, expected {expected}")
