"""`python -m gateway` is `wave-gateway`."""

from gateway import cli

cli.main()
