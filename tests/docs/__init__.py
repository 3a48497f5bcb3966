"""The documentation does what it says: it builds, its blocks run or at least name what exists, its tables are whole."""
