"""The cache shared by the workers of one host (Unix sockets) and by hosts (TCP with mutual TLS).

`mesh.Peers` is what others use. Everything decided is in modules without I/O: `frames`, `greeting`, `ownership`,
`leases`, `purges`, `heat`.
"""
