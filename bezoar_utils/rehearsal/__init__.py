"""A whole profile on a laptop, offline: stand-ins behind the names of its models, data sets and endpoints."""
