"""How fast this harness is beside the way that others do the same work: ours and theirs in one process, counted too."""
