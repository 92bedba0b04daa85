"""The project agent: runs commands and edits files of one project for callers that may publish to its subjects."""
