"""What every room may use: errors, registries, random streams, files, and the reading of untrusted input."""
