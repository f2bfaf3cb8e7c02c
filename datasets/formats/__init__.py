"""Readers: one on-disk format a file, each turning files into a Store."""
