"""The measured runs of the series, and how they are drawn: ``runs`` and ``plots``."""
