"""Faults by causing them: kills, full disks, dead processes, damaged files. `scripts/torture`; docs/reliability.md."""
