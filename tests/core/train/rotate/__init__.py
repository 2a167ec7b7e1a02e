"""Rotation prediction with a student of two bits: a method of your own, in five files."""
