"""A reproducible benchmark for erasing concepts from text-to-image diffusion models."""
