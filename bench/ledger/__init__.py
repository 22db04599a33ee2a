"""Whether the ledger is the providers' own bill when processes are killed meanwhile (`python -m bench.ledger`)."""
