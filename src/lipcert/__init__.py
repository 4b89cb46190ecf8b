"""lipcert."""
