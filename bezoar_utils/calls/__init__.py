"""Who is asked: the teacher, the judge, endpoints, finished calls, the budget."""
