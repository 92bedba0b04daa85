"""The project agent: runs commands and edits files of one project, for whoever may publish to ``projects.{id}``."""
