"""Tokens, labels, precision, models, sampling, SFT and DPO."""
