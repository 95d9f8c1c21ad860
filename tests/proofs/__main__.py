"""The long proofs, one after another: `python -m tests.proofs [NAME…]`, or `make proofs`.

One line of result each; ends with exit code 1 at the first that does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final

from tests.proofs import disconnects, drops, hostile, outage, prometheus, rounding, run, scrape, ssrf, sums, webhooks

PROOFS: Final[Mapping[str, run.Proof]] = {
    "drops": drops.prove,
    "down": outage.down,
    "unavailable": outage.unavailable,
    "flaps": outage.flaps,
    "half-deaf": outage.deaf,
    "disconnects": disconnects.prove,
    "sums": sums.prove,
    "rounding": rounding.prove,
    "scrape": scrape.prove,
    "prometheus": prometheus.prove,
    "webhooks": webhooks.prove,
    "hostile": hostile.prove,
    "ssrf": ssrf.prove,  # the last: not every machine lets it make a network
}


def main(names: Sequence[str]) -> int:
    """Run the named proofs, or all; returns the exit code."""
    unknown = [name for name in names if name not in PROOFS]
    if unknown:
        sys.stderr.write(f"there is no proof {unknown[0]!r}; there are {', '.join(PROOFS)}\n")
        return 2
    return 0 if all(run.one(name, PROOFS[name]) for name in names or PROOFS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
