"""Tests of the documentation: it builds, its code blocks run or name existing things, and its tables are complete."""
