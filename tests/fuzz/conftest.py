"""How long the fuzz tests search: `make test` tries a few inputs, the same ones each time; `make fuzz` many, new ones each time."""

import functools
import os
import ssl

import pytest
from hypothesis import HealthCheck, settings

HERE_FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # each input writes its own file
settings.register_profile("short", max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=HERE_FINE)
settings.register_profile("long", max_examples=2000, deadline=None, database=None, print_blob=True, suppress_health_check=HERE_FINE)
settings.load_profile(os.environ.get("FUZZ", "short"))


@pytest.fixture(scope="session", autouse=True)
def certificates_read_once():
    """Each client would read them again, which takes longer than all else that an input needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.lru_cache(ssl.create_default_context))
        yield
