"""Mistral 7B and its family in a terminal: private, offline, in readable Python."""

__version__ = "0.1.0"
