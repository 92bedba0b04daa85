"""Documents and files that are kept the same (docs/reference/documents.md, "Files")."""
