"""The terminals of a project: programs on pseudo-terminals that need no reader, and the screens that viewers get.

``terminal.py`` holds one program and its viewers, ``emulator.py`` keeps the screens in a process of its own.
"""
