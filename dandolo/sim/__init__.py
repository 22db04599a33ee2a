"""Simulated providers on real sockets: honest servers, scripted conduct."""

from dandolo.sim.connection import Received
from dandolo.sim.script import KINDS, Fault, Script
from dandolo.sim.server import SimProvider, free_port
from dandolo.sim.thread import SimThread

__all__ = ["KINDS", "Fault", "Received", "Script", "SimProvider", "SimThread", "free_port"]
