"""How long the fuzz tests search: `make test` tries a few inputs, the same ones each time; `make fuzz` many, new ones each time."""

import os

from hypothesis import HealthCheck, settings

HERE_FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # each input writes its own file
settings.register_profile("short", max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=HERE_FINE)
settings.register_profile("long", max_examples=2000, deadline=None, database=None, print_blob=True, suppress_health_check=HERE_FINE)
settings.load_profile(os.environ.get("FUZZ", "short"))
