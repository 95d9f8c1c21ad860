"""What the gateway costs, beside nginx and its peers: `make bench`. BENCH.md says what is measured and how."""
