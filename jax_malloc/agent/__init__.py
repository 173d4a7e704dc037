"""The MuZero agent: network, search, whole games, checkpoints; training apart."""
