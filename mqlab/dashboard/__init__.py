"""The live dashboard of one queue: ``from mqlab import Dashboard``."""
