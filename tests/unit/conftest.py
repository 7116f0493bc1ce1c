"""Property tests that give the same answer on every machine, however busy it is."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "palimpsest",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("palimpsest")
