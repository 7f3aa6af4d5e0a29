"""Records → a static site that opens from disk, and the same figures as files."""
