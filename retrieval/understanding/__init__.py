"""A query's words into filters: what they rule out, exactly, and nothing that they merely suggest."""
