"""A judge without a model: it reads checkable wishes back from an instruction and checks a reply against them, exactly."""
