"""Calls to models: the teacher, the judge, endpoints, finished calls, the budget."""
