"""Rows before training: the prompt template, sources, filters, preference pairs."""
