from recorded_networks import name, network  # noqa: F401
