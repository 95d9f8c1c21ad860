"""HTTP out: every byte that leaves, with limits and an address guard."""
