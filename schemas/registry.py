"""The schema registry, where a team has one: ids to schemas and back, through Confluent's own client."""

from __future__ import annotations

import json
from typing import Any

from penstock.schemas.errors import UnknownSchema


class ConfluentRegistry:
    """A Confluent-compatible registry. Lookups are cached by the client; a write registers the schema once.

    `config` passes through to SchemaRegistryClient: url, basic.auth.user.info, ssl.ca.location, ….
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self._client = SchemaRegistryClient(config)

    def schema_by_id(self, schema_id: int) -> dict[str, Any]:
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            schema = self._client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                raise UnknownSchema(f"the schema registry has no schema with id {schema_id}") from error
            raise  # the registry's trouble, not the record's: the caller retries
        if schema.schema_type not in (None, "AVRO"):
            raise UnknownSchema(f"schema {schema_id} in the registry is {schema.schema_type}, expected AVRO")
        found: dict[str, Any] = json.loads(schema.schema_str or "null")
        return found

    def id_of(self, subject: str, schema: dict[str, Any]) -> int:
        from confluent_kafka.schema_registry import Schema

        return int(self._client.register_schema(subject, Schema(json.dumps(schema), "AVRO")))
