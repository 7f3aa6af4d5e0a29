"""Records to boards, tables and image grids. Nothing here loads torch."""
