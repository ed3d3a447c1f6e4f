"""A hypothesis strategy for any record class of the wire, made from its type hints."""

import collections.abc
import dataclasses
import typing

from hypothesis import strategies as st

from penstock.schemas.records import Symbol, fields_of

_SCALARS = {
    str: st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    int: st.integers(min_value=-(2**63), max_value=2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=12),
}


def any_record(record: type, depth: int = 2) -> st.SearchStrategy:
    """Any value of `record`; records nest at most `depth` deep below it."""
    return st.builds(
        record,
        **{
            field.attribute: st.none() | _any(field.hint, depth) if field.optional else _any(field.hint, depth)
            for field in fields_of(record)
            if not (field.optional and depth <= 0)
        },
    )


def _any(hint: typing.Any, depth: int) -> st.SearchStrategy:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _any(arguments[0], depth)
    if origin is tuple:
        nested = dataclasses.is_dataclass(arguments[0])
        return st.just(()) if nested and depth <= 0 else st.lists(_any(arguments[0], depth), max_size=2).map(tuple)
    if origin is collections.abc.Mapping:
        return st.dictionaries(_SCALARS[str], _any(arguments[1], depth), max_size=2)
    if issubclass(hint, Symbol):
        return st.sampled_from(list(hint))
    if dataclasses.is_dataclass(hint):
        return st.deferred(lambda: any_record(hint, depth - 1))
    return _SCALARS[hint]
