"""The rules of remote copy, as plain calculation.

Owns: what a record is, what time and number a write gets, what has arrived, what may be
applied, what state a pair is in, what differs from the peer.
Never: sockets, files, threads, an event loop, a clock or random numbers; time comes in as
an argument, so the same code runs in the daemon and in the simulator.
"""
