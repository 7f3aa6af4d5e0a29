"""Scores: raw outputs of evaluators for each image, and the protocols that turn them into numbers."""
