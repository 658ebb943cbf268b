"""Plan in a video model that remembers."""

__version__ = "0.1.0"
