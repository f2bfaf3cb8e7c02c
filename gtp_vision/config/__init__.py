"""The typed schema of everything under configs/, and its presets."""
