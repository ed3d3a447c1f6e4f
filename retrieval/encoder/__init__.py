"""Text to vectors: MiniLM for queries, an aligned token table for postings, a lexical sketch in the same row."""
