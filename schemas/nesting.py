"""Records may contain themselves; their bytes may not do so without end.

fastavro's compiled reader follows a recursive schema on the C stack and checks no depth: some 50 KB of nested filters
end the process that decodes them, whoever sent them. So a self-containing record is unrolled to a fixed number of
levels before it is parsed. The bytes on the wire stay as they are; a level deeper does not decode.
"""

from __future__ import annotations

from typing import Any

import fastavro

MAX_NESTING = 32  # levels of one record inside itself; filters may be 16 deep (filters.MAX_DEPTH)

# What stands where the next level would: no record is long enough to hold it.
_TOO_DEEP = {"type": "fixed", "name": "io.penstock.nested_too_deep", "size": 1 << 40}
_NAMED = ("record", "error", "enum", "fixed")


def bounded(schema: Any) -> Any:
    """The schema with every record inside itself unrolled to MAX_NESTING levels, as `fastavro.parse_schema` takes it.

    Reads and writes the same bytes as `schema`. Writer's and reader's schema must both go through here: resolution
    compares the names of the levels.
    """
    return _Unroll(fastavro.parse_schema(schema)).schema


def too_deep(error: Exception) -> bool:
    """Whether reading failed because a record held itself more than MAX_NESTING times."""
    return isinstance(error, EOFError) and str(_TOO_DEEP["size"]) in str(error)


class _Unroll:
    """One walk over a parsed schema (all names full), defining each name where the walk first meets it."""

    def __init__(self, parsed: Any) -> None:
        self._definitions: dict[str, Any] = {}
        self._defined: set[str] = set()
        self._collect(parsed)
        self.schema = self._emit(parsed, {})

    def _collect(self, node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                self._collect(each)
        elif isinstance(node, dict):
            if node["type"] in _NAMED:
                self._definitions[node["name"]] = node
            for field in node.get("fields", ()):
                self._collect(field["type"])
            for inner in ("items", "values", "type"):
                self._collect(node.get(inner))

    def _emit(self, node: Any, open_at: dict[str, int]) -> Any:
        """`open_at`: the records we are inside of, and at which level of each."""
        if isinstance(node, str):
            return self._emit_named(node, open_at) if node in self._definitions else node
        if isinstance(node, list):
            return [self._emit(each, open_at) for each in node]
        if node["type"] in _NAMED:
            return self._emit_named(node["name"], open_at)
        inner = {"array": "items", "map": "values"}.get(node["type"] if isinstance(node["type"], str) else "", "type")
        return {**node, inner: self._emit(node[inner], open_at)}

    def _emit_named(self, name: str, open_at: dict[str, int]) -> Any:
        definition = self._definitions[name]
        level = open_at[name] + 1 if name in open_at else 0
        if level > MAX_NESTING:
            return self._define(_TOO_DEEP["name"], _TOO_DEEP)
        unrolled = name if level == 0 else f"{name}__{level}"
        if unrolled in self._defined or "fields" not in definition:
            return self._define(unrolled, definition)
        self._defined.add(unrolled)
        inside = {**open_at, name: level}
        fields = [{**field, "type": self._emit(field["type"], inside)} for field in definition["fields"]]
        return {**_plain(definition), "name": unrolled, "fields": fields}

    def _define(self, name: Any, definition: Any) -> Any:
        if name in self._defined:
            return name
        self._defined.add(name)
        return _plain(definition)


def _plain(definition: Any) -> dict[str, Any]:
    """Without the marks that tell fastavro that a schema is parsed already."""
    return {key: value for key, value in definition.items() if not key.startswith("__")}
