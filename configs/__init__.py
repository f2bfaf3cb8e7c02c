"""The YAML files that Hydra composes; their typed schema is gtp_vision.config.schema."""
