"""Everything that validates one call: its function, arguments and options."""
