"""The control process: its workers and what they share, the ledger, keys, logs, metrics, alerts, the admin listener.

`cli.service` puts these together."""
