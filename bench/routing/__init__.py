"""The choice of providers in virtual time: `python -m bench.routing`."""
