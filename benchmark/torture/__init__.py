"""Harm done on purpose: a disk that fails, and processes that are killed, until a run has come to its end.

`python -m benchmark.torture` shows on a machine, and on its file system, that a run which is killed again and again
ends with the bytes of one that was not.
"""
