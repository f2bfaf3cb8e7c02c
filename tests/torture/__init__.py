"""Kills, full disks, dead processes and damaged files, caused for real. See `scripts/torture`, docs/reliability.md."""
