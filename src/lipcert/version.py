"""The version, by itself: whatever says it need not import all of lipcert."""

__all__ = ["__version__"]

__version__ = "0.1.0"
