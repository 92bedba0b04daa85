"""Backups of a whole platform: take them, check them, restore them.

A backup is a folder in a target folder. :mod:`natskit.backup.target` describes both, and
:mod:`natskit.backup.manifest` the description that each backup contains.
"""
