"""Folder in, rows out: classification and embedding of ordinary folders."""
