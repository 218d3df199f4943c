"""A closed world small enough to train base, teacher and students on two CPU cores. Described in `README.md` here."""
