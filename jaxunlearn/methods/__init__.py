"""The systems of the papers: one paper, one file."""
