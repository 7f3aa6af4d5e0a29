"""Erasure methods: one file a method, named as on the command line. A leading underscore marks what they share.

Adapters import torch only when they edit, so that listing and planning answer at once.
"""
