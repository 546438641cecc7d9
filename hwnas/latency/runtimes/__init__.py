"""One file per runtime, each with `version`, `providers` and a class `Model`: see Runtime in hwnas.latency.session."""
